"""Ctrl-C and SIGTERM while there is something to save. Imports the standard library alone."""

import contextlib
import os
import signal
import threading
import time

# What a scheduler sends by several ways comes within so long
TOGETHER_SECONDS = 1.0


def write_line(text: str) -> None:
    """Write a line in a signal's handler, where print raises if the signal came amid another print."""
    # Ctrl-C ends a reader of the output too
    with contextlib.suppress(OSError):
        os.write(1, f"\n{text}\n".encode())


class Stop:
    """should_stop of a recipe, which calls it after every step: whether SIGINT or SIGTERM has come.

    Signals within TOGETHER_SECONDS of the first are the same request: a scheduler may send one to a process,
    and to the group that it is in.
    As a context manager it listens until the end of the block. Python hears signals in the main thread alone:
    in another one it hears none.
    """

    # Whether something else ends this process at a second Ctrl-C: a thread of launch.signals
    ends_by_thread = False

    def __init__(self):
        self.asked, self.since = False, 0.0
        hears = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if hears else ()
        self.previous = {number: signal.signal(number, self._ask) for number in numbers}

    def __call__(self):
        return self.asked

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each, handler in self.previous.items():
            signal.signal(each, handler)

    def _ask(self, number, frame):
        if self.asked:
            by_thread = number == signal.SIGINT and self.ends_by_thread
            if time.monotonic() - self.since > TOGETHER_SECONDS and not by_thread:
                # A second request acts as if this class did not exist
                self.__exit__()
                os.kill(os.getpid(), number)
            return
        self.asked, self.since = True, time.monotonic()
        name = signal.Signals(number).name
        write_line(f"{name}: finishing the step, then saving; send it again to exit at once")
