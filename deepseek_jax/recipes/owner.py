"""Ownership of a directory by owner.json, which its owner renews, and removes at its end.

File systems' locks would not do: buckets have none, and many network file systems have none either.
Clocks of two machines are never compared: an owner on another machine lives if its file changes
while this process watches.
"""

import contextlib
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from deepseek_jax.files import absolute, is_remote, write_whole

OWNER = "owner.json"
# A living owner renews its file every BEAT_SECONDS. An owner is dead if its file stays the same for
# WATCH_SECONDS
BEAT_SECONDS, WATCH_SECONDS = 5.0, 30.0
# Two processes may take over at once. After SETTLE_SECONDS the file names the one that has the
# directory
SETTLE_SECONDS, POLL_SECONDS = 1.0, 0.5
# The fields of owner.json; _place returns the first four
FIELDS = ("host", "boot", "pid", "started", "token", "beats")
# Tokens of the directories that this process owns
_OURS: set[str] = set()


@contextlib.contextmanager
def owned(workdir: str | os.PathLike, busy: Callable[[dict], None]) -> Iterator[str]:
    """Create the directory and own it while the block runs.

    A directory changes its owner at once if the old owner was a process of this machine that has
    ended. If the old owner is on another machine, owner.json first has to stay unchanged for
    WATCH_SECONDS. A process that stands still for that long may lose its directory in this way. It
    then ends at once with status 1: another process resumes from its last checkpoint, and further
    writes of this one would be in the way.

    Args:
        workdir: The directory.
        busy: busy(owner) is called repeatedly while another process owns the directory. It waits a
            while, or raises. owner is the content of owner.json: host, pid, token, beats, and where
            the pid counts.

    Yields:
        The token in owner.json.

    Raises:
        ValueError: The directory cannot be created or written.
    """
    workdir = absolute(workdir)
    owner = _Owner(workdir)
    while (other_owner := _or_value_error(workdir, owner.claim)) is not None:
        busy(other_owner)
    _OURS.add(owner.token)
    owner.renewing.start()
    try:
        yield owner.token
    finally:
        owner.release()
        _OURS.discard(owner.token)


def read_owner(workdir: pathlib.Path) -> dict | None:
    """Return the content of owner.json; None if there is no such file.

    Raises:
        ValueError: The file is not one of a run.
    """
    try:
        owner = json.loads((workdir / OWNER).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        owner = None
    if isinstance(owner, dict) and set(FIELDS) <= owner.keys():
        return owner
    raise ValueError(
        f"--workdir={workdir}: {OWNER} there is not a run's; move it away, or give another --workdir"
    )


def names_in(workdir: pathlib.Path) -> set[str]:
    """Return the names in a directory, without the files of its owner."""
    names = {path.name for path in workdir.iterdir()} if workdir.exists() else set()
    return {name for name in names if not name.startswith(OWNER)}


def _or_value_error(workdir, claim):
    try:
        if not is_remote(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir} cannot be a directory: {error}; give another --workdir"
        ) from error
    try:
        return claim()
    except ValueError:
        raise
    # Catch any exception: each package that writes to buckets raises its own
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"--workdir={workdir} cannot be written: {cause}; give another --workdir, or this account the "
            "right to write there"
        ) from error


class _Owner:
    """This process as the owner of a directory."""

    def __init__(self, workdir):
        self.workdir, self.path = workdir, workdir / OWNER
        self.token, self.beats = secrets.token_hex(8), 0
        self.place = dict(zip(FIELDS, _place(os.getpid()), strict=False))
        self.ended = threading.Event()
        self.renewing = threading.Thread(target=self._renew, daemon=True)

    def claim(self) -> dict | None:
        """Try to own the directory.

        Returns:
            None if this process owns it now; the content of owner.json if another process does.
        """
        owner = read_owner(self.workdir)
        if owner is None and not is_remote(self.path):
            if self._created():
                return None
            # Another process was faster, or the file system has no links
            owner = read_owner(self.workdir)
        if owner is not None and self._lives(owner):
            return owner
        self._write()
        time.sleep(SETTLE_SECONDS)
        owner = read_owner(self.workdir)
        return None if owner is None or owner["token"] == self.token else owner

    def release(self):
        """Stop renewing, and remove owner.json if it still has this process's token."""
        self.ended.set()
        # With a limit: the thread may be waiting for a bucket that does not answer
        self.renewing.join(WATCH_SECONDS)
        with contextlib.suppress(Exception):
            if (read_owner(self.workdir) or {}).get("token") == self.token:
                # Files of killed processes: no other process writes here while this one owns the
                # directory
                for stale_file in self.workdir.glob(f"{OWNER}.*"):
                    stale_file.unlink(missing_ok=True)
                self.path.unlink()

    def _text(self):
        self.beats += 1
        return json.dumps(self.place | {"token": self.token, "beats": self.beats}) + "\n"

    def _write(self):
        if is_remote(self.path):
            write_whole(self.path, self._text())
        else:
            os.replace(self._fresh(), self.path)

    def _created(self):
        """Return True if this call created the file; False also if that cannot be known."""
        fresh_file = self._fresh()
        try:
            # One step, which fails if the file exists
            os.link(fresh_file, self.path)
        # Some file systems have no links
        except OSError:
            return False
        finally:
            fresh_file.unlink(missing_ok=True)
        return True

    def _fresh(self):
        """Return a local file with the text to write.

        No other process uses its name, because all may write at once.
        """
        fresh_file = pathlib.Path(f"{self.path}.{self.token}")
        fresh_file.write_text(self._text())
        return fresh_file

    def _lives(self, owner):
        if owner["token"] in _OURS:
            return True
        if owner["boot"] == self.place["boot"] is not None:
            return _place(owner["pid"])[1:] == tuple(owner[name] for name in FIELDS[1:4])
        print(
            f"{self.workdir} is owned by {owner_text(owner)}: looking for {WATCH_SECONDS:g} s whether it "
            "lives",
            flush=True,
        )
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            if (current_owner := read_owner(self.workdir)) != owner:
                return current_owner is not None
        return False

    def _renew(self):
        failed = False
        while not self.ended.wait(BEAT_SECONDS):
            try:
                owner = read_owner(self.workdir)
                if owner is not None and owner["token"] != self.token:
                    _leave(self.workdir, owner)
                self._write()
                failed = False
            # Catch any exception, as above. The run may go on: it may not need the directory for a
            # while
            except Exception as error:
                if not failed:
                    print(f"{self.path} could not be renewed: {error}", file=sys.stderr, flush=True)
                failed = True


def owner_text(owner: dict) -> str:
    """Describe an owner in words."""
    return f"process {owner['pid']} on {owner['host']}"


def _leave(workdir, owner):
    """End this process before it saves anything else: another process owns its directory."""
    message = (
        f"error: {workdir} was taken over by {owner_text(owner)}, because this process did not renew {OWNER} "
        f"for {WATCH_SECONDS:g} s; it ends now, and the other one resumes from its last checkpoint"
    )
    print(message, file=sys.stderr, flush=True)
    # Not sys.exit, which would end only this thread
    os._exit(1)


def _place(pid):
    """Return (host, boot, pid, start time) of a live process here; equal results are one process.

    boot identifies the boot of the machine and the namespace of its pids, because a container has
    pids of its own. It is None where this is unknown.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        boot += " " + os.readlink("/proc/self/ns/pid")
    # Not Linux
    except OSError:
        return socket.gethostname(), None, pid, None
    try:
        # The program's name, in brackets, may have spaces
        started = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        started = None
    return socket.gethostname(), boot, pid, started
