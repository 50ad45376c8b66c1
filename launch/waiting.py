"""Say what a program waits for, and end it where that never comes."""

import contextlib
import os
import sys
import threading

# Before a person wonders
SAY_SECONDS = 5.0
USER_ERROR = 2


@contextlib.contextmanager
def waiting(what: str, limit_seconds: float, remedy: str):
    """Print what the block waits for once it has taken SAY_SECONDS; end the program with one message and
    USER_ERROR where it takes limit_seconds: a call into a library cannot be left.
    """

    def say():
        print(f"waiting for {what}, at most {limit_seconds:g} s", flush=True)

    def end():
        print(
            f"error: {what}: waited {limit_seconds:g} s; {remedy}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(USER_ERROR)

    timers = threading.Timer(SAY_SECONDS, say), threading.Timer(limit_seconds, end)
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
