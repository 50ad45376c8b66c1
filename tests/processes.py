"""Two processes of one JAX run, each a fresh interpreter."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMEOUT = 600  # seconds
# After one process has failed, the other may wait for it in a collective for ever
GRACE = 10


def run_two(program, *args, xla_flags=""):
    """Run Python source twice, sys.argv[1:] being [process, port, *args]: -> (exit statuses, outputs).

    Processes that still run GRACE seconds after one has failed, or after TIMEOUT, are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}",
    }
    # Files: a pipe that nobody reads yet would stop a process that says much
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(process) for process in range(2)]
        started = []
        for process, path in enumerate(paths):
            with open(path, "w") as output:
                command = [sys.executable, "-c", program, str(process), port, *map(str, args)]
                started.append(
                    subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
                )
        _wait(started)
        return [process.returncode for process in started], [path.read_text() for path in paths]


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
