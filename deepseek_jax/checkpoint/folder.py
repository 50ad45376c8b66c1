"""A new folder, whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


def check_new(folder):
    """Raise ValueError unless folder is absent or empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; give a new folder, nothing is overwritten")


@contextlib.contextmanager
def whole_folder(folder):
    """Yield a new folder beside `folder` that takes its place at the end, and goes if anything fails."""
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        partial.chmod(0o755)
        yield partial
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial)
        raise
