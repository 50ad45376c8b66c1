"""Messages about waits of a run or a plan: a line before each, and reminders of the innermost one.

A terminal has a foot: one line below the others, drawn in place, with a bar or with a reminder.
Elsewhere a reminder is a line more every EVERY_SECONDS.

All this appears only within `speaking`, which the programs and ds.train open: calls of the library,
and the worker processes of rewards, wait in silence. This file imports no jax, because the first
line comes before that import.
"""

import contextlib
import io
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TextIO

from typing_extensions import override

# Shorter waits are not announced: most of what may take long is often there already
SOON_SECONDS = 0.5
EVERY_SECONDS = 30.0
# The foot has a reminder of a wait once it has taken this long
FOOT_SECONDS = 5.0
POLL_SECONDS = 0.25
# Return to the first column and erase the line
ERASE = "\r\x1b[2K"

_lock = threading.RLock()
# The waits under way, outermost first
_waits: list["Wait"] = []
# Draws the bar for a width in columns, and the time when it began
_bar: tuple[Callable[[int], str], float] | None = None
# When the latest bar ended: a wait around it has moved until then
_moved_at = 0.0
_speaks, _hushed, _said_at = False, False, 0.0
# Lines go to standard error if the output of the program is answers
_to_stderr = False
# The thread that prints announcements and reminders, and the event that ends it
_watcher: threading.Thread | None = None
_ended = threading.Event()


class Wait:
    """A wait under way.

    Attributes:
        what: In words, as in "loading the newest checkpoint of grpo".
        by_all: Whether hushed processes announce it too.
        soon: Seconds after which it is announced; None for SOON_SECONDS.
    """

    def __init__(self, what: str, by_all: bool = False, soon: float | None = None):
        self.what, self.by_all = what, by_all
        self.soon = SOON_SECONDS if soon is None else soon
        self.began, self.announced = time.monotonic(), False

    def now(self, what: str):
        """Wait for something else from here on: it is not announced, but reminders name it."""
        with _lock:
            self.what, self.began, self.announced = what, time.monotonic(), True

    def is_heard(self) -> bool:
        """Return whether this process prints the wait."""
        return _speaks and (self.by_all or not _hushed)

    def begin(self):
        """Begin it; `waiting_for` is the usual way."""
        with _lock:
            _waits.append(self)

    def end(self):
        """End it, and the waits within it that nothing has ended."""
        with _lock:
            if self in _waits:
                del _waits[_waits.index(self) :]

    def remind(self):
        """Start the thread that reminds of waits, if this process speaks and none runs."""
        _start_watcher()

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
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _above_foot(sys.stdout), _above_foot(sys.stderr)
    try:
        yield
    finally:
        _speaks = False
        _ended.set()
        if _watcher is not None:
            _watcher.join()
        with _lock:
            _erase_foot()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = streams


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
def waiting_for(
    what: str, *, at_once: bool = False, by_all: bool = False, soon: float | None = None
) -> Iterator[Wait]:
    """Announce the block once it has taken a while, and remind of it, if this process speaks.

    Reminders name the innermost wait.

    Args:
        what: In words, as in "compiling the update of grpo".
        at_once: Announce it immediately, and start no thread: Wait.remind starts it.
        by_all: Announce it in hushed processes too.
        soon: The field of Wait; infinity for a wait that is announced by other lines.

    Yields:
        The Wait.
    """
    wait = Wait(what, by_all, soon)
    wait.begin()
    if at_once:
        wait.announce()
    else:
        wait.remind()
    try:
        yield wait
    finally:
        wait.end()


def importing_jax() -> AbstractContextManager[Wait]:
    """Return the wait for the import of JAX: a program's first line, which comes at once."""
    return waiting_for("importing jax", at_once="jax" not in sys.modules)


def has_foot() -> bool:
    """Return whether lines go to a terminal, so that a bar can be drawn."""
    return isinstance(_stream(), _AboveFoot)


@contextlib.contextmanager
def bar(draw: Callable[[int], str]) -> Iterator[None]:
    """Draw a bar in the foot during the block.

    Reminders of waits that begin within the block take its place, because it does not move then.

    Args:
        draw: Called a few times a second with the foot's width in columns.
    """
    global _bar, _moved_at
    _bar = draw, time.monotonic()
    _start_watcher()
    try:
        yield
    finally:
        _bar, _moved_at = None, time.monotonic()


def duration(seconds: float) -> str:
    """Return a time in words, as in "20 s" or "3.5 h"."""
    for unit, unit_seconds in (("s", 1), ("min", 60)):
        if seconds < 99.5 * unit_seconds:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def line(text: str):
    """Print a line in one piece, because another thread may print too."""
    global _said_at
    with _lock:
        stream = _stream()
        stream.write(f"{text}\n")
        stream.flush()
        _said_at = time.monotonic()


def _stream():
    return sys.stderr if _to_stderr else sys.stdout


class _AboveFoot(io.TextIOWrapper):
    """A terminal's stream that erases the foot before it writes."""

    # The stream on which the foot is now, and whether the terminal's cursor is in the first column
    drawn: "_AboveFoot | None" = None
    at_start = True

    def __init__(self, stream: TextIO):
        file = io.FileIO(stream.fileno(), "w", closefd=False)
        encoding, errors = stream.encoding, stream.errors
        super().__init__(io.BufferedWriter(file), encoding, errors, line_buffering=True)

    @override
    def write(self, text):
        with _lock:
            _erase_foot()
            if text:
                _AboveFoot.at_start = text.endswith("\n")
            return super().write(text)

    def draw(self, text: str):
        """Draw the foot; the cursor stays in its first column, for writers that are not Python."""
        super().write(f"{ERASE}{text}\r")
        self.flush()
        _AboveFoot.drawn = self

    def erase(self):
        """Erase the foot."""
        super().write(ERASE)
        self.flush()
        _AboveFoot.drawn = None


def _above_foot(stream):
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return stream
    stream.flush()
    return _AboveFoot(stream)


def _erase_foot():
    if _AboveFoot.drawn is not None:
        _AboveFoot.drawn.erase()


def _start_watcher():
    global _watcher
    with _lock:
        if _speaks and (_watcher is None or not _watcher.is_alive()):
            _watcher = threading.Thread(target=_watch, daemon=True)
            _watcher.start()


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
            if now - wait.began >= wait.soon:
                wait.announce()
        stream = _stream()
        if isinstance(stream, _AboveFoot):
            foot = _foot(heard, now)
            if not foot:
                _erase_foot()
            elif _AboveFoot.at_start:
                stream.draw(foot)
        elif heard and now - max(heard[-1].began, _said_at) >= EVERY_SECONDS:
            line(f"still {heard[-1].what}, {now - heard[-1].began:.0f} s")


def _foot(heard, now):
    """Return the text of the foot: a reminder or the bar; "" for no foot."""
    # In the last column a terminal would begin another line
    width = shutil.get_terminal_size().columns - 1
    began = heard[-1].began if heard else now
    if now - max(began, _moved_at) >= FOOT_SECONDS and (_bar is None or began > _bar[1]):
        return f"still {heard[-1].what}, {now - began:.0f} s"[:width]
    return "" if _bar is None else _bar[0](width)
