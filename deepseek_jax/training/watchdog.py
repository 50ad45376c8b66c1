"""A watchdog over the loop: it prints all stacks when a step is stuck, and may end the process."""

import dataclasses
import os
import socket
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import jax

# Seconds between two looks
LOOK_EVERY = 1.0
# Median over the last RECENT steps; none until FEWEST have ended
RECENT, FEWEST = 100, 3


@dataclasses.dataclass(frozen=True)
class Watchdog:
    """The rule by which a step is stuck, and what happens then.

    A step is stuck after `factor` times the median of the phase's earlier steps, but never before
    floor_seconds: steps that log, save, evaluate or compile take many medians, and are healthy.
    Then all stacks of the process are printed to stderr, once for each step.

    No step is stuck before four have ended: the first ones compile, for as long as that takes. The
    watchdog is a thread, so it cannot run while code holds Python's lock. Waiting for a device does
    not hold that lock.

    Attributes:
        factor: at least 1.
        exit_status: after printing, the process ends with this status, without saving. None lets
            the step continue.

    Raises:
        ValueError: for a factor below 1.
    """

    factor: float
    exit_status: int | None = None
    floor_seconds: float = 600.0

    def __post_init__(self):
        if self.factor < 1:
            raise ValueError(
                f"factor={self.factor} must be at least 1, in medians of earlier steps; 0 for no watchdog"
            )

    def over(self, steps: Iterable[int], phase: str, latest: Callable[[], object]) -> Iterator[int]:
        """Yield the steps of a phase while a thread watches them.

        Args:
            latest: latest() -> the arrays of the step that has just ended on the host. The step
                itself ends when the devices have computed them.
        """
        watch = _Watch(self)
        with self._watching(watch, phase):
            for step in steps:
                watch.begin(step, time.monotonic())
                yield step
                watch.dispatched(latest())

    @contextmanager
    def _watching(self, watch, phase):
        ended = threading.Event()

        def look():
            while not ended.wait(min(LOOK_EVERY, self.floor_seconds / 4)):
                stuck = watch.look(time.monotonic())
                if stuck is not None:
                    self._report(phase, *stuck)

        thread = threading.Thread(target=look, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _report(self, phase, step, seconds, median):
        where = f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"
        print(
            f"watchdog: {where}: {phase} step {step} has taken {seconds:.1f} s, where the median is "
            f"{median:.3g} s. The stacks of its threads:",
            *_stacks(),
            sep="\n",
            file=sys.stderr,
            flush=True,
        )
        if self.exit_status is None:
            return
        print(f"watchdog: exit with {self.exit_status}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Not sys.exit: it would end only this thread, and the step may never return
        os._exit(self.exit_status)


def _stacks():
    """Yield the lines of every thread's stack, the main thread first.

    Each stack begins with its innermost call.

    faulthandler would leave out all but the latest 100 threads, and the main thread with them. No
    source line is read: a thread may be waiting for the disk.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)
    for ident, frame in frames:
        yield f"Thread {names.get(ident, ident)!r}:"
        for caller, line in traceback.walk_stack(frame):
            yield f'  File "{caller.f_code.co_filename}", line {line} in {caller.f_code.co_name}'


class _Watch:
    """The clock of a phase: which steps are running, and how long the earlier ones took.

    The loop dispatches steps faster than the devices run them. So a step lasts from the end of the
    step before to its own end, as the devices see it.
    """

    def __init__(self, rule: Watchdog):
        self.rule, self.lock = rule, threading.Lock()
        # [step, its arrays, or None before they are dispatched], the oldest step first
        self.under_way: deque[list] = deque()
        # When the latest step ended, or the first one began
        self.since: float | None = None
        self.any_ended = False
        # The last step that was stuck
        self.reported: int | None = None
        self.seconds: deque[float] = deque(maxlen=RECENT)

    def begin(self, step, now):
        """Note that the host begins a step."""
        with self.lock:
            self.since = now if self.since is None else self.since
            self.under_way.append([step, None])

    def dispatched(self, arrays):
        """Note that the host has finished the latest step, and the devices compute its arrays."""
        with self.lock:
            self.under_way[-1][1] = [x for x in jax.tree.leaves(arrays) if hasattr(x, "is_ready")]

    def look(self, now):
        """Look for a step that is stuck and not reported yet.

        Returns:
            (step, seconds so far, median), or None if there is no such step.
        """
        with self.lock:
            self._count_ended(now)
            if not self.under_way or len(self.seconds) < FEWEST:
                return None
            step, median = self.under_way[0][0], statistics.median(self.seconds)
            took = now - self.since
            if step == self.reported or took <= max(
                self.rule.factor * median, self.rule.floor_seconds
            ):
                return None
            self.reported = step
            return step, took, median

    def _count_ended(self, now):
        ended = 0
        while self.under_way and self._is_ready(self.under_way[0][1]):
            self.under_way.popleft()
            ended += 1
        if not ended:
            return
        # The first step compiles, so it does not count
        if self.any_ended:
            self.seconds.extend([(now - self.since) / ended] * ended)
        self.since, self.any_ended = now, True

    @staticmethod
    def _is_ready(arrays):
        return arrays is not None and all(array.is_ready() for array in arrays)
