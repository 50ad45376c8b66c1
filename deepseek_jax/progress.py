"""Messages about waits of a run or a plan: a line before each, and one more every EVERY_SECONDS.

Lines appear only within `speaking`, which the programs and ds.train open: calls of the library, and
the worker processes of rewards, wait in silence. This file imports no jax, because the first line
comes before that import.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager

# Shorter waits are not announced: most of what may take long is often there already
SOON_SECONDS = 0.5
EVERY_SECONDS = 30.0
POLL_SECONDS = 0.25

_lock = threading.RLock()
# The waits under way, outermost first
_waits: list["Wait"] = []
_speaks, _hushed, _said_at = False, False, 0.0
# Lines go to standard error if the output of the program is answers
_to_stderr = False
# The thread that prints announcements and reminders, and the event that ends it
_watcher: threading.Thread | None = None
_ended = threading.Event()


class Wait:
    """A wait under way.

    Attributes:
        what: In words, as in "compiling the update of grpo".
        by_all: Whether hushed processes announce it too.
    """

    def __init__(self, what: str, by_all: bool = False):
        self.what, self.by_all = what, by_all
        self.began, self.announced = time.monotonic(), False

    def now(self, what: str):
        """Wait for something else from here on: it is not announced, but reminders name it."""
        with _lock:
            self.what, self.began, self.announced = what, time.monotonic(), True

    def is_heard(self) -> bool:
        """Return whether this process prints the wait."""
        return _speaks and (self.by_all or not _hushed)

    def remind(self):
        """Start the thread that reminds of waits, if this process speaks and none runs."""
        global _watcher
        with _lock:
            if _speaks and (_watcher is None or not _watcher.is_alive()):
                _watcher = threading.Thread(target=_watch, daemon=True)
                _watcher.start()

    def announce(self):
        """Print what the wait is for, once."""
        if self.is_heard() and not self.announced:
            self.announced = True
            line(self.what)


@contextlib.contextmanager
def speaking() -> Iterator[None]:
    """Announce the waits of the block, and remind of them.

    A block within another one changes nothing.
    """
    global _speaks
    if _speaks:
        yield
        return
    _ended.clear()
    _speaks = True
    try:
        yield
    finally:
        _speaks = False
        _ended.set()
        if _watcher is not None:
            _watcher.join()


def hush(hushed: bool):
    """Say nothing from here on, or speak again.

    In a run of several processes, only the first one speaks.
    """
    global _hushed
    _hushed = hushed


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """Print the lines of the block on standard error."""
    global _to_stderr
    _to_stderr = True
    try:
        yield
    finally:
        _to_stderr = False


@contextlib.contextmanager
def waiting_for(what: str, *, at_once: bool = False, by_all: bool = False) -> Iterator[Wait]:
    """Announce the block once it has taken SOON_SECONDS, and remind of it, if this process speaks.

    Reminders name the innermost wait.

    Args:
        what: In words, as in "compiling the update of grpo".
        at_once: Announce it immediately, and start no thread: Wait.remind starts it.
        by_all: Announce it in hushed processes too.

    Yields:
        The Wait.
    """
    wait = Wait(what, by_all)
    with _lock:
        _waits.append(wait)
    if at_once:
        wait.announce()
    else:
        wait.remind()
    try:
        yield wait
    finally:
        with _lock:
            _waits.remove(wait)


def importing_jax() -> AbstractContextManager[Wait]:
    """Return the wait for the import of JAX: a program's first line, which comes at once."""
    return waiting_for("importing jax", at_once="jax" not in sys.modules)


class FirstTime:
    """A block that is a wait when it is first entered: a jitted function's first call compiles."""

    def __init__(self, what: str):
        self.what = what
        self._entered: set[Hashable] = set()

    def __call__(self, shapes: Hashable = None) -> AbstractContextManager[Wait | None]:
        """Return the context of the block.

        Args:
            shapes: Shapes of the arrays. The function compiles anew for each, so each has a first
                time.
        """
        if shapes in self._entered:
            return contextlib.nullcontext()
        self._entered.add(shapes)
        return waiting_for(self.what)


def line(text: str):
    """Print a line in one piece, because another thread may print too."""
    global _said_at
    with _lock:
        stream = sys.stderr if _to_stderr else sys.stdout
        stream.write(f"{text}\n")
        stream.flush()
        _said_at = time.monotonic()


def _watch():
    while not _ended.wait(POLL_SECONDS):
        # A closed pipe ends the program when the program prints, not here
        with contextlib.suppress(OSError, ValueError):
            _look()


def _look():
    """Print the announcements and reminders that are due."""
    with _lock:
        heard, now = [wait for wait in _waits if wait.is_heard()], time.monotonic()
        for wait in heard:
            if now - wait.began >= SOON_SECONDS:
                wait.announce()
        if heard and now - max(heard[-1].began, _said_at) >= EVERY_SECONDS:
            line(f"still {heard[-1].what}, {now - heard[-1].began:.0f} s")
