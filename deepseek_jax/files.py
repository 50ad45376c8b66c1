"""Files of a run, in a folder or in a bucket (gs://): paths, whole writes, growing files, copies.

A bucket has objects, not files: an object appears once it is complete, it cannot grow, and there
are no folders. Methods of etils.epath.Path work in both places. This file has the rest.
"""

import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import pathlib
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any

from etils.epath import Path

# A growing file in a bucket is rewritten at most every REWRITE_SECONDS, and a large one less often,
# so that writing takes at most 1 / REST of the time
REWRITE_SECONDS, REST = 10.0, 20
# PARTIAL and random letters end the name of a local file or folder until it is complete, and a dot
# begins it. PARTIALS matches such names, and only a killed process leaves one
PARTIAL, PARTIALS = ".partial-", ".*.partial-*"
# Number of files that are copied from a bucket at once
COPIES = 8
# A bucket's first answer: the seconds until a message says that it is late, and until an error
SAY_SECONDS, ANSWER_SECONDS = 5.0, 60.0


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path is the address of something in a bucket."""
    return "://" in os.fspath(path)


def expanded(path: str | os.PathLike) -> str:
    """Replace ~ or ~USER at the beginning of a path by the home folder.

    Raises:
        ValueError: There is no such user. The path would name a folder ~USER below the working
            folder.
    """
    full_path = os.path.expanduser(os.fspath(path))
    if full_path.startswith("~"):
        raise ValueError(
            f"{path} begins with the home folder of a user that is not there; write ./{path} for a path "
            "below the working folder"
        )
    return full_path


def as_path(path: str | os.PathLike) -> Path:
    """Convert a path to an etils.epath.Path, which serves local paths and buckets.

    Local paths are expanded (~).

    Raises:
        ValueError: The path is an address that does not begin with gs://; the package that reads
            gs:// is missing; the bucket does not answer; the path is a pipe or a device; or as
            expanded does.
    """
    if is_remote(path):
        if not os.fspath(path).startswith("gs://"):
            raise ValueError(f"{path} is neither a local path nor an address gs://BUCKET/NAME")
        _prepare_buckets()
        _wait_for(os.fspath(path).split("/")[2])
        return Path(os.fspath(path))
    local_path = expanded(path)
    if os.path.exists(local_path) and not (os.path.isfile(local_path) or os.path.isdir(local_path)):
        raise ValueError(
            f"{path} is a pipe or a device, and may never end; write it to a file first"
        )
    return Path(local_path)


def absolute(path: str | os.PathLike) -> Path:
    """Convert a path as as_path does, and make it absolute if it is local.

    The method absolute() of etils would break gs://.
    """
    given = as_path(path)
    return given if is_remote(given) else Path(os.path.abspath(given))


@functools.cache
def _prepare_buckets():
    if importlib.util.find_spec("tensorflow") is None:
        if importlib.util.find_spec("gcsfs") is None:
            raise ValueError(
                "paths that begin with gs:// need the package gcsfs: pip install 'deepseek_jax[gcs]'"
            )
        import fsspec

        # Otherwise gcsfs lists a folder once, and never sees what other processes write there later
        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


@functools.cache
def _wait_for(bucket):
    """Wait for the first answer of a bucket, whatever it is, because libraries retry silently.

    Raises:
        ValueError: There was no answer in ANSWER_SECONDS.
    """
    has_answered = threading.Event()

    def ask():
        # Any exception: each package has its own. The call that needs the answer raises it again
        with contextlib.suppress(Exception):
            Path(f"gs://{bucket}").exists()
        has_answered.set()

    threading.Thread(target=ask, daemon=True).start()
    if has_answered.wait(SAY_SECONDS):
        return
    print(f"waiting for gs://{bucket} to answer, at most {ANSWER_SECONDS:g} s", flush=True)
    if not has_answered.wait(ANSWER_SECONDS - SAY_SECONDS):
        raise ValueError(
            f"gs://{bucket} has not answered in {ANSWER_SECONDS:g} s; look at the network, or give a place "
            "that can be reached"
        )


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a local path to write to, and give `path` that content when the block ends.

    If the block raises, or the process is killed, `path` stays as it was.
    """
    target = as_path(path)
    if is_remote(target):
        with tempfile.TemporaryDirectory() as folder:
            new_file = pathlib.Path(folder, target.name)
            yield new_file
            Path(new_file).copy(target, overwrite=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, because other processes may write the same file
    new_file = pathlib.Path(target.with_name(f".{target.name}{PARTIAL}{secrets.token_hex(4)}"))
    try:
        yield new_file
        with open(new_file, "rb") as file:
            # The content must be on disk before the name is
            os.fsync(file.fileno())
        os.replace(new_file, target)
    except BaseException:
        new_file.unlink(missing_ok=True)
        raise


def write_whole(path: str | os.PathLike, text: str):
    """Write a text file completely, in place of an existing one."""
    with whole_file(path) as new_file:
        new_file.write_text(text, encoding="utf-8")


def parse_json(text: str) -> Any:
    """Parse JSON as json.loads does, but reject repeated keys and too deep nesting.

    Raises:
        ValueError: The text is not JSON, an object has a key twice (json.loads takes the last), or
            it is nested too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _object(pairs):
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated_key = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated_key!r} is there twice")
    return fields


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file that this project wrote.

    Raises:
        ValueError: The file is not JSON. The message has its path.
    """
    file = as_path(path)
    try:
        return parse_json(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged, as it is not JSON ({error}); put back a copy, or remove what it belongs to"
        ) from error


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        ValueError: The file contains anything else. The message has its path.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is damaged, as it holds no JSON object; put back a copy, or remove what it belongs to"
        )
    return content


class GrowingFile:
    """A text file to which lines are added; the first line creates it.

    A local file has a line when `add` returns. In a bucket the file is written anew, at most every
    REWRITE_SECONDS and when `flush` is called: if the process is killed, the lines after that are
    lost. If the bucket cannot be written for a while, `add` stores the lines in memory, and `flush`
    raises.

    Attributes:
        path: The file's path.
        sync: Write the lines of a local file to disk at once, so that they survive if the machine
            fails.
    """

    def __init__(self, path: str | os.PathLike, *, sync: bool = False):
        self.path, self.sync = as_path(path), sync
        # For a file in a bucket: its text, what is to be added, and when it may be written again
        self._text: str | None = None
        self._waiting: list[str] = []
        self._next = time.monotonic() + REWRITE_SECONDS

    def add(self, text: str):
        """Add text, whole lines, at the end."""
        if is_remote(self.path):
            self._waiting.append(text)
            if time.monotonic() >= self._next:
                self._try_to_flush()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Opened for each text, which is then in the file even if the process is killed
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)
            if self.sync:
                file.flush()
                os.fsync(file.fileno())

    def flush(self):
        """Write the lines that wait for a file in a bucket."""
        if not self._waiting:
            return
        began = time.monotonic()
        if self._text is None:
            self._text = self.path.read_text() if self.path.exists() else ""
        text = self._text + "".join(self._waiting)
        write_whole(self.path, text)
        now = time.monotonic()
        self._text, self._waiting = text, []
        self._next = now + max(REWRITE_SECONDS, REST * (now - began))

    def _try_to_flush(self):
        try:
            self.flush()
        # Any exception: each package for buckets has its own. The lines wait, the run continues
        except Exception as error:
            print(f"{self.path} could not be written, and is tried again: {error}", flush=True)
            self._next = time.monotonic() + REWRITE_SECONDS


def below(path: str | os.PathLike) -> list[Path]:
    """List the paths of everything below a folder, at any depth; in a bucket, of the files only."""
    folder = as_path(path)
    if not is_remote(folder):
        return [Path(entry) for entry in pathlib.Path(folder).rglob("*")]
    paths: list[Path] = []
    # glob and walk of etils do not find everything in a bucket
    for entry in folder.iterdir():
        paths += below(entry) if entry.is_dir() else [entry]
    return paths


def remove_folder(path: str | os.PathLike):
    """Remove a folder with everything in it, if it is there."""
    folder = as_path(path)
    if is_remote(folder):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def upload(folder: str | os.PathLike, target: str | os.PathLike, last: str | None = None):
    """Copy the files of a local folder to another folder, which may be in a bucket.

    Args:
        last: Name of the file that is copied last. Readers know by it that the others are there.
    """
    source, target_folder = pathlib.Path(folder), as_path(target)
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == last):
        destination = target_folder / path.relative_to(source).as_posix()
        if not is_remote(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
        Path(path).copy(destination, overwrite=True)


def cache_folder(name: str) -> pathlib.Path:
    """Return the local folder of this name for files that may be deleted at any time.

    It is in deepseek_jax below $XDG_CACHE_HOME, or below ~/.cache.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(caches) / "deepseek_jax" / name


def staged(
    path: str | os.PathLike, wanted: Callable[[str], bool] = lambda name: True
) -> pathlib.Path:
    """Return a local path of what is at `path`: itself or, for gs://, a complete copy.

    This is for libraries that read only local files. A copy stays in cache_folder("staged"). It
    serves all processes of a machine and later runs, until the source changes.

    Args:
        path: A file or a folder.
        wanted: wanted(name) says whether to copy a file of a folder.

    Raises:
        ValueError: There is nothing to copy at an address gs://.
    """
    source = as_path(path)
    if not is_remote(source):
        return pathlib.Path(source)
    all_files = below(source) if source.is_dir() else [source] if source.exists() else []
    files = [file for file in all_files if wanted(file.name)]
    if not files:
        raise ValueError(f"there is nothing at {source}")
    stats = [file.stat() for file in files]
    # The path counts too: a folder of one file is another copy than the file
    digest = blake2b(f"{source}\0".encode(), digest_size=16)
    for file, stat in zip(files, stats, strict=True):
        digest.update(f"{file}\0{stat.length}\0{stat.mtime}\0".encode())
    folder = cache_folder("staged") / digest.hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_suffix(".lock")):
        if not folder.exists():
            _stage(source, files, folder)
    return folder / source.name


def _stage(path, files, folder):
    print(f"{path} is copied to {folder}", flush=True)
    # Killed processes left these: the lock lets in only one process at a time
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial_folder = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:

        def copy(file):
            # For a single file this is the path itself
            target = partial_folder / path.name / pathlib.PurePosixPath(file.relative_to(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            file.copy(target)

        with ThreadPoolExecutor(COPIES) as pool:
            list(pool.map(copy, files))
        os.replace(partial_folder, folder)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def _alone(path):
    """Wait until no other process of this machine is in this block for the same file."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
