"""A new folder, whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from deepseek_jax.parallel.processes import barrier, first_process, from_each


def check_new(folder):
    """Raise ValueError unless folder is absent or empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; give a new folder, nothing is overwritten")


@contextlib.contextmanager
def whole_folder(folder):
    """Yield a new folder beside `folder` that takes its place at the end, and goes if anything fails.

    The processes of a run enter together, on a file system that they share, and get the same folder, which
    process 0 makes: it takes its place once all of them are done with it.
    """
    folder = Path(folder).absolute()
    partial = Path(from_each(_new_beside(folder) if first_process() else None)[0])
    try:
        yield partial
        barrier(f"all have written {folder}")
        if first_process():
            os.replace(partial, folder)
        barrier(f"{folder} is there")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # another process may be at it too
        raise


def _new_beside(folder):
    """The path of a new folder with a name of its own beside `folder`: str."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.")
    os.chmod(partial, 0o755)
    return partial
