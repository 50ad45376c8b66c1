"""Ctrl-C and SIGTERM, from the start of a program to its end. Imports no jax."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

from deepseek_jax.parallel.host_memory import keep_freed_memory
from deepseek_jax.recipes.stop import TOGETHER_SECONDS, Stop, write_line

# What a shell reports of a program that Ctrl-C ended
INTERRUPTED = 130
# When the first Ctrl-C of this program came, or of the latest block of `heard`; empty before it
_first = []
# Whether a block of `raised` runs, in which no Ctrl-C ends the program
_raises = False


def listen():
    """Have Ctrl-C end this program with a line and status 130, before anything imports jax: a callback of it
    would swallow KeyboardInterrupt. A Stop takes over while there is something to save.
    """
    # Before this program's first thread, whose heap others would share: large arrays are mapped anew in it
    keep_freed_memory()
    Stop.ends_by_thread = True
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    # It hears a signal where the main thread cannot: a compilation may take minutes
    threading.Thread(target=_end_at_second, args=(ours, theirs), daemon=True).start()
    signal.signal(signal.SIGINT, _interrupt)


def _end_at_second(ours, _theirs):
    """End the program at the second Ctrl-C. _theirs: is not closed while this thread lives."""
    while True:
        if ours.recv(1)[0] != signal.SIGINT or _raises:
            continue
        now = time.monotonic()
        first = _first[0] if _first else now
        _first[:] = [first]
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


@contextlib.contextmanager
def heard():
    """In the block the first Ctrl-C ends nothing: yields a function, whether it came. A second one ends the
    program, and the first one after the block is a first one again.
    """
    came = []
    # On a busy machine the thread notes a Ctrl-C of the block before only after its end
    _first.clear()
    previous = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, previous)
        _first.clear()


@contextlib.contextmanager
def raised():
    """In the block each Ctrl-C raises KeyboardInterrupt and does nothing else: for a prompt, where a person
    may press it any number of times.
    """
    global _raises
    _raises = True
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        _raises = False
        _first.clear()
