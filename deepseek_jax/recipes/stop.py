"""Stop requests by Ctrl-C and SIGTERM, while a run has something to save.

Imports only the standard library.
"""

import contextlib
import os
import signal
import threading
import time

# Signals within this time are one request: a scheduler may send several
TOGETHER_SECONDS = 1.0


def write_line(text: str) -> None:
    """Write a line in a signal's handler, where print raises if it interrupted another print."""
    # The output may be closed: Ctrl-C ends the program that reads it too
    with contextlib.suppress(OSError):
        os.write(1, f"\n{text}\n".encode())


class Stop:
    """A recipe's should_stop: a call returns True once SIGINT or SIGTERM has come.

    A recipe calls it after every step. Signals within TOGETHER_SECONDS of the first one are the
    same request: a scheduler may send one to a process, and one to the group of that process. As a
    context manager, it listens until the end of the block. Python delivers signals only to the main
    thread: in another thread it gets none.
    """

    # True if a thread of launch.signals ends this process at a second Ctrl-C
    ends_by_thread = False

    def __init__(self):
        self.requested, self.since = False, 0.0
        is_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if is_main_thread else ()
        self.previous = {number: signal.signal(number, self._ask) for number in numbers}

    def __call__(self):
        """Return whether the run was asked to stop."""
        return self.requested

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.requested:
            by_thread = number == signal.SIGINT and self.ends_by_thread
            if time.monotonic() - self.since > TOGETHER_SECONDS and not by_thread:
                # A second request acts as if there were no Stop
                self.__exit__()
                os.kill(os.getpid(), number)
            return
        self.requested, self.since = True, time.monotonic()
        name = signal.Signals(number).name
        write_line(f"{name}: finishing the step, then saving; send it again to exit at once")
