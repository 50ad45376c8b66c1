"""Processes that a test starts: two of one JAX run, each of the warm interpreter, and what is left of one."""

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests import warm

TIMEOUT = 600  # seconds
# After one process has failed, the other may wait for it in a collective for ever
GRACE = 10
# What a killed process has started ends within so many seconds
ORPHAN_SECONDS = 20


def run_two(program, *args, xla_flags=""):
    """Run Python source twice, sys.argv[1:] being [process, port, *args]: -> (exit statuses, outputs).

    Processes that still run GRACE seconds after one has failed, or after TIMEOUT, are killed.
    """
    port = free_port()
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}",
    }
    # Files: a pipe that nobody reads yet would stop a process that says much
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(process) for process in range(2)]
        started = []
        for process, path in enumerate(paths):
            with open(path, "w") as output:
                streams = dict(stdout=output, stderr=subprocess.STDOUT)
                started.append(
                    warm.Program("-c", program, process, port, *args, env=env, **streams)
                )
        _wait(started)
        return [process.returncode for process in started], [path.read_text() for path in paths]


def free_port():
    """The number of a free port of this machine: str."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def wait_for_orphans(session):
    """Return when no process of a session lives, that of Popen(start_new_session=True). AssertionError where
    one lives ORPHAN_SECONDS later.
    """
    until = time.monotonic() + ORPHAN_SECONDS
    while orphans := _living(session):
        assert time.monotonic() < until, f"{orphans} live on"
        time.sleep(0.1)


def _living(session):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name of the program, in brackets, may have spaces
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        # It has ended meanwhile
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def _wait(started):
    end = time.monotonic() + TIMEOUT
    while any(process.poll() is None for process in started):
        if any(process.returncode for process in started):
            end = min(end, time.monotonic() + GRACE)
        if time.monotonic() > end:
            for process in started:
                process.kill()
                process.wait()
        time.sleep(0.05)
