"""Ctrl-C, from the start of a program to its end.

While a run has something to save, recipes.stop handles Ctrl-C and SIGTERM instead. This module
imports no JAX.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

from deepseek_jax.parallel.host_memory import keep_freed_memory
from deepseek_jax.recipes.stop import TOGETHER_SECONDS, Stop, write_line

# The exit status that a shell reports for a program that Ctrl-C ended
INTERRUPTED = 130
# [the time of the first Ctrl-C since the program's start or the latest block of `heard`]; [] before
_first: list[float] = []
# True during a block of `raised`, in which no Ctrl-C ends the program
_raises = False


def listen():
    """Make Ctrl-C end this program with a line and status 130.

    Call it before anything imports JAX: a callback of JAX would swallow KeyboardInterrupt. While
    there is something to save, a Stop takes over.
    """
    # Before the program's first thread: in another thread's heap, large arrays would be mapped anew
    keep_freed_memory()
    Stop.ends_by_thread = True
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    # This thread hears a signal when the main thread cannot: a compilation may take minutes
    threading.Thread(target=_end_at_second, args=(ours, theirs), daemon=True).start()
    signal.signal(signal.SIGINT, _interrupt)


def _end_at_second(ours, _theirs):
    """End the program at the second Ctrl-C.

    Args:
        ours: The end of a pair of sockets that receives the signals' numbers.
        _theirs: The other end. This argument keeps it open while the thread lives.
    """
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
    """End the program at the first Ctrl-C, while nothing can be saved."""
    # Only the thread handles the next one
    signal.signal(number, lambda *_: None)
    write_line("Ctrl-C: ended; nothing was under way that could be saved")
    while frame is not None:
        # An exception during an import may be lost, and there is nothing to clean up
        if "importlib" in frame.f_code.co_filename:
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible():
    """Listen for Ctrl-C in a program's body, and exit with status 130 if Ctrl-C ends it."""
    listen()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@contextlib.contextmanager
def heard():
    """Let the first Ctrl-C in the block end nothing; a second one ends the program.

    After the block, the next Ctrl-C counts as a first one again.

    Yields:
        A function that returns True once Ctrl-C has come.
    """
    came = []
    # On a busy machine, the thread may note a Ctrl-C of an earlier block only after the end of that
    # block
    _first.clear()
    previous = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, previous)
        _first.clear()


@contextlib.contextmanager
def raised():
    """Let each Ctrl-C in the block raise KeyboardInterrupt and do nothing else.

    This is for a prompt, where a person may press Ctrl-C any number of times.
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
