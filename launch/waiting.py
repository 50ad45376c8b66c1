"""End a program that waits for what never comes."""

import contextlib
import os
import sys
import threading

from deepseek_jax.progress import waiting_for

USER_ERROR = 2


@contextlib.contextmanager
def waiting(what: str, limit_seconds: float, remedy: str):
    """Say what the block waits for, on every process; end the program with one message and USER_ERROR where
    it takes limit_seconds: a call into a library cannot be left.
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
        # Any of them may be the one that waits in vain
        with waiting_for(f"waiting for {what}, at most {limit_seconds:g} s", by_all=True):
            yield
    finally:
        timer.cancel()
