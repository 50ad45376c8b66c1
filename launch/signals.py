"""Ctrl-C and SIGTERM, from the start of a program to its end. Imports the standard library alone."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

# What a scheduler sends by several ways comes within so long
TOGETHER_SECONDS = 1.0
# What a shell reports of a program that Ctrl-C ended
INTERRUPTED = 130
# Whether `listen` was called
_ends_by_thread = False


def listen():
    """Have Ctrl-C end this program with a line and status 130, before anything imports jax: a callback of it
    would swallow KeyboardInterrupt. A Stop takes over while there is something to save.
    """
    global _ends_by_thread
    _ends_by_thread = True
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    # It hears a signal where the main thread cannot: a compilation may take minutes
    threading.Thread(target=_end_at_second, args=(ours, theirs), daemon=True).start()
    signal.signal(signal.SIGINT, _interrupt)


def _end_at_second(ours, _theirs):
    """End the program at the second Ctrl-C. _theirs: is not closed while this thread lives."""
    first = None
    while True:
        if ours.recv(1)[0] != signal.SIGINT:
            continue
        now = time.monotonic()
        first = now if first is None else first
        if now - first > TOGETHER_SECONDS:
            write_line("Ctrl-C again: ended at once; what came after the last save is lost")
            os._exit(INTERRUPTED)


def _interrupt(number, frame):
    """The first Ctrl-C while nothing can be saved."""
    # The next one is for the thread alone
    signal.signal(number, lambda *_: None)
    write_line("Ctrl-C: ended; nothing was under way that could be saved")
    while frame is not None:
        # An exception in an import may be lost, and there is nothing to clean up
        if "importlib" in frame.f_code.co_filename:
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible():
    """Listen in the body of a program, which ends with status 130 where Ctrl-C ended it."""
    listen()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def write_line(text: str):
    """Write a line in a signal's handler, where print raises if the signal came amid another print."""
    # Ctrl-C ends a reader of the output too
    with contextlib.suppress(OSError):
        os.write(1, f"\n{text}\n".encode())


class Stop:
    """should_stop of a recipe, which calls it after every step: whether SIGINT or SIGTERM has come.

    Signals within TOGETHER_SECONDS of the first are the same request: a scheduler may send one to a process,
    and to the group that it is in.
    As a context manager it listens until the end of the block.
    """

    def __init__(self):
        self.asked, self.since = False, 0.0
        self.previous = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def __call__(self):
        return self.asked

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each, handler in self.previous.items():
            signal.signal(each, handler)

    def _ask(self, number, frame):
        if self.asked:
            by_thread = number == signal.SIGINT and _ends_by_thread
            if time.monotonic() - self.since > TOGETHER_SECONDS and not by_thread:
                # A second request acts as if this class did not exist
                self.__exit__()
                os.kill(os.getpid(), number)
            return
        self.asked, self.since = True, time.monotonic()
        name = signal.Signals(number).name
        write_line(f"{name}: finishing the step, then saving; send it again to exit at once")
