"""What a run or a plan waits for: a line before each wait, and one more every EVERY_SECONDS.

Only within `speaking`, which the programs and ds.train open: calls of a library, and the worker processes of
rewards, wait in silence. Imports no jax, because the first line comes before that import.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Hashable

# A wait that ends sooner is not announced: most of what may take long is often there already
SOON_SECONDS = 0.5
EVERY_SECONDS = 30.0
POLL_SECONDS = 0.25

_lock = threading.RLock()
# The waits under way, outermost first
_waits: list["Wait"] = []
_speaks, _hushed, _said_at = False, False, 0.0
# Where lines go: to the standard error of a program whose output is answers
_to_stderr = False
# The thread that looks at them, and what ends it
_watcher, _ended = None, threading.Event()


class Wait:
    """A wait under way. what: in words, as in "compiling the update of grpo". by_all: see waiting_for."""

    def __init__(self, what: str, by_all: bool = False):
        self.what, self.by_all = what, by_all
        self.began, self.announced = time.monotonic(), False

    def now(self, what: str):
        """Wait for something else from here on, which is not announced and which reminders name."""
        with _lock:
            self.what, self.began, self.announced = what, time.monotonic(), True

    def is_heard(self):
        """Whether this process prints the wait."""
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
def speaking():
    """Announce the waits of the block, and remind of them. A block within another one changes nothing."""
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
    """Say nothing from here on, or speak again: of several processes the first alone speaks."""
    global _hushed
    _hushed = hushed


@contextlib.contextmanager
def on_stderr():
    """Print the lines of the block on the standard error."""
    global _to_stderr
    _to_stderr = True
    try:
        yield
    finally:
        _to_stderr = False


@contextlib.contextmanager
def waiting_for(what: str, *, at_once: bool = False, by_all: bool = False):
    """Announce the block once it has taken SOON_SECONDS, if this process speaks: yields the Wait. Of waits
    within others the innermost is the one that reminders name. at_once: announce it without that delay, and
    without a thread: Wait.remind starts it. by_all: by hushed processes too.
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


def importing_jax():
    """The wait for the import of JAX: a program's first line, which comes at once."""
    return waiting_for("importing jax", at_once="jax" not in sys.modules)


class FirstTime:
    """A block that is a wait the first time it is entered: a jitted function's first call compiles."""

    def __init__(self, what: str):
        self.what, self._entered = what, set()

    def __call__(self, shapes: Hashable = None):
        """The context of the block. shapes: of the arrays, for each of which the function compiles anew."""
        if shapes in self._entered:
            return contextlib.nullcontext()
        self._entered.add(shapes)
        return waiting_for(self.what)


def line(text: str):
    """Print a line. In one piece, because another thread may print too."""
    global _said_at
    with _lock:
        stream = sys.stderr if _to_stderr else sys.stdout
        stream.write(f"{text}\n")
        stream.flush()
        _said_at = time.monotonic()


def _watch():
    while not _ended.wait(POLL_SECONDS):
        # A closed pipe ends the program where it prints itself
        with contextlib.suppress(OSError, ValueError):
            _look()


def _look():
    """Print what is due."""
    with _lock:
        heard, now = [wait for wait in _waits if wait.is_heard()], time.monotonic()
        for wait in heard:
            if now - wait.began >= SOON_SECONDS:
                wait.announce()
        if heard and now - max(heard[-1].began, _said_at) >= EVERY_SECONDS:
            line(f"still {heard[-1].what}, {now - heard[-1].began:.0f} s")
