"""New folders, on disk or in a bucket, that are written completely or not at all."""

import contextlib
import os
import tempfile
from hashlib import blake2b
from pathlib import Path

from deepseek_jax.files import PARTIAL, absolute, as_path, below, is_remote, remove_folder
from deepseek_jax.parallel.processes import barrier, first_process, from_each

# Bytes that fingerprint reads at a file's beginning and at its end: other weights differ there
ENDS = 2**16
# A file in a bucket's folder until the folder is complete: a bucket has no folders to rename
UNFINISHED = "UNFINISHED"


def check_new(folder: str | Path):
    """Raise ValueError unless a folder can be written anew: it is absent or empty.

    A path above it must not be a file. A bucket's folder that whole_folder did not finish counts as
    empty.
    """
    path = as_path(folder)
    files = [parent for parent in path.parents if not is_remote(path) and parent.is_file()]
    if files:
        raise ValueError(f"{path} cannot be a folder: {files[0]} is a file; give another path")
    if not is_unfinished(path) and path.exists():
        if not path.is_dir() or any(path.iterdir()):
            raise ValueError(f"{path} is not empty; give a new folder, nothing is overwritten")


def is_whole(folder: str | Path) -> bool:
    """Return whether a folder that whole_folder writes is there and complete."""
    return not is_unfinished(folder) and as_path(folder).exists()


def is_unfinished(folder: str | Path) -> bool:
    """Return whether whole_folder was interrupted in this folder of a bucket.

    The files in such a folder do not count. A local folder is never unfinished.
    """
    return is_remote(folder) and (as_path(folder) / UNFINISHED).exists()


def fingerprint(path: str | Path) -> str:
    """Identify the files at a path by 16 hexadecimal digits, without reading them completely.

    The digits cover the name, the size, the beginning and the end of every file. If the path is no
    folder, they also cover the path itself. If nothing is there, they cover only the path.
    """
    root, digest = as_path(path), blake2b(digest_size=8)
    if not root.is_dir():
        digest.update(str(root).encode())
    for entry in sorted(below(root)) if root.is_dir() else [root]:
        # The relative name, so that a copy in another folder has the same fingerprint
        digest.update(f"{entry.relative_to(root)}\0".encode())
        if entry.is_file():
            _digest_ends(digest, entry)
    return digest.hexdigest()


def _digest_ends(digest, path):
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(f"{size}\0".encode())
        file.seek(0)
        digest.update(file.read(ENDS))
        file.seek(max(size - ENDS, 0))
        digest.update(file.read(ENDS))


@contextlib.contextmanager
def whole_folder(folder: str | Path):
    """Yield a new folder that takes the place of `folder` when the block ends.

    The new folder stands next to `folder`. At the end it is renamed to `folder`, or deleted if
    anything fails. The processes of a run enter together, on a file system that they share, and get
    the same new folder. Process 0 creates it, and renames it once all of them are done. In a bucket
    they get `folder` itself, which has the file UNFINISHED until then.
    """
    target = absolute(folder)
    begin = _marked if is_remote(target) else _new_beside
    partial = as_path(from_each(begin(target) if first_process() else None)[0])
    try:
        yield partial
        barrier(f"all have written {target}")
        if first_process():
            if partial == target:
                (target / UNFINISHED).unlink()
            else:
                # A rename also replaces an empty folder, which check_new allows
                os.replace(partial, target)
        barrier(f"{target} is there")
    except BaseException:
        # Another process may be deleting it too
        remove_folder(partial)
        raise


def write_files(folder: str | Path, files: dict[str, bytes] | None):
    """Write small files, {name: content}, into a folder of whole_folder."""
    for name, content in (files or {}).items():
        (as_path(folder) / name).write_bytes(content)


def _marked(folder):
    """Empty a bucket's folder, mark it as UNFINISHED and return its path, a str."""
    remove_folder(folder)
    (folder / UNFINISHED).write_text("")
    return str(folder)


def _new_beside(folder):
    """Create a folder with a unique name next to `folder` and return its path, a str."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}{PARTIAL}")
    # mkdtemp lets only the owner read
    os.chmod(partial, 0o755)
    return partial
