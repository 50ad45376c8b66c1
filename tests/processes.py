"""Two processes of one JAX run, each a fresh interpreter."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_two(program, *args, xla_flags=""):
    """Run Python source twice, sys.argv[1:] being [process, port, *args]: -> (exit statuses, outputs)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(process), port, *map(str, args)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    return [process.returncode for process in started], outputs
