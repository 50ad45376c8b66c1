"""A time limit for calls into libraries, which may wait forever.

Tests: tests/launch/test_backend.py.
"""

import contextlib
import os
import sys
import threading

from deepseek_jax.progress import waiting_for

USER_ERROR = 2


@contextlib.contextmanager
def waiting(what: str, limit_seconds: float, remedy: str):
    """Announce what the block waits for, and end the program if it takes too long.

    After limit_seconds the program ends with one message and USER_ERROR, because a call into a
    library cannot be interrupted. Every process announces the wait.

    Args:
        what: What the block waits for, in words.
        remedy: What the user can do, in words.
    """

    def end():
        print(
            f"error: {what}: waited {limit_seconds:g} s; {remedy}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(USER_ERROR)

    timer = threading.Timer(limit_seconds, end)
    timer.daemon = True
    timer.start()
    try:
        # On every process: any of them may be the one that waits in vain
        with waiting_for(f"waiting for {what}, at most {limit_seconds:g} s", by_all=True):
            yield
    finally:
        timer.cancel()
