"""Write a new folder: complete or not at all."""

import contextlib
import os
import tempfile
from hashlib import blake2b
from pathlib import Path

from deepseek_jax.files import absolute, as_path, below, is_remote, remove_folder
from deepseek_jax.parallel.processes import barrier, first_process, from_each

# Bytes read at a file's beginning and at its end: other weights differ in these
ENDS = 2**16
# In a folder of a bucket until it is complete: a bucket has no folders to rename
UNFINISHED = "UNFINISHED"
# The end of a local folder's name until it is complete, and others that only a killed process leaves
PARTIAL, PARTIALS = ".partial-", ".*.partial-*"


def check_new(folder: str | Path):
    """Raise ValueError unless folder is absent or empty, and what stands above it are folders."""
    folder = as_path(folder)
    files = [above for above in folder.parents if not is_remote(folder) and above.is_file()]
    if files:
        raise ValueError(f"{folder} cannot be a folder: {files[0]} is a file; give another path")
    if not is_unfinished(folder) and folder.exists():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; give a new folder, nothing is overwritten")


def is_whole(folder: str | Path):
    """Whether a folder that whole_folder makes is there, complete."""
    return not is_unfinished(folder) and as_path(folder).exists()


def is_unfinished(folder: str | Path):
    """Whether whole_folder was interrupted in this folder of a bucket: what is there does not count."""
    return is_remote(folder) and (as_path(folder) / UNFINISHED).exists()


def fingerprint(path: str | Path):
    """16 hexadecimal digits for the files at a path, without reading them all.

    They cover the name, the size, the beginning and the end of every file. Where there is no file, they
    cover the path alone.
    """
    path, digest = as_path(path), blake2b(digest_size=8)
    if not path.is_dir():
        digest.update(str(path).encode())
    for each in sorted(below(path)) if path.is_dir() else [path]:
        # The relative name, so that a copy in another folder has the same fingerprint
        digest.update(f"{each.relative_to(path)}\0".encode())
        if each.is_file():
            _digest_ends(digest, each)
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
    """Yield a new folder beside `folder`; rename it to `folder` at the end, or delete it if anything fails.

    The processes of a run enter together, on a file system that they share. They get the same folder, which
    process 0 creates and renames once all of them are done with it. In a bucket they get `folder` itself,
    which holds UNFINISHED until then.
    """
    folder = absolute(folder)
    begin = _marked if is_remote(folder) else _new_beside
    partial = as_path(from_each(begin(folder) if first_process() else None)[0])
    try:
        yield partial
        barrier(f"all have written {folder}")
        if first_process():
            if partial == folder:
                (folder / UNFINISHED).unlink()
            else:
                # A rename also takes the place of an empty folder, which check_new allows
                os.replace(partial, folder)
        barrier(f"{folder} is there")
    except BaseException:
        # Another process may be deleting it too
        remove_folder(partial)
        raise


def write_files(folder: str | Path, files: dict[str, bytes] | None):
    """Write small files, {name: content}, into a folder of whole_folder."""
    for name, content in (files or {}).items():
        (as_path(folder) / name).write_bytes(content)


def _marked(folder):
    """The path of a folder of a bucket, emptied and marked as UNFINISHED: str."""
    remove_folder(folder)
    (folder / UNFINISHED).write_text("")
    return str(folder)


def _new_beside(folder):
    """The path of a new folder with a name of its own beside `folder`: str."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}{PARTIAL}")
    # mkdtemp lets nobody but its owner read
    os.chmod(partial, 0o755)
    return partial
