"""The Run that launch hands to a recipe, and how a run that was asked to stop ends.

Tests: tests/training/test_loop.py.
"""

import contextlib
import dataclasses
from collections.abc import Callable

from etils.epath import Path
from jax.sharding import Mesh

from deepseek_jax.parallel.processes import StopTogether, say
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.profile import Profile
from deepseek_jax.training.watchdog import Watchdog

# Exit status of a run that was asked to stop and has saved: start it again to resume. The number is
# EX_TEMPFAIL in sysexits.h
STOPPED = 75
# The StopTogether of the current `stoppable` block
_should_leave = None


@contextlib.contextmanager
def stoppable(should_stop: Callable[[], bool]):
    """Within this block, let leave_if_asked() end the run once should_stop() is true.

    All processes leave at the same call.
    """
    global _should_leave
    before = _should_leave
    with StopTogether(should_stop) as _should_leave:
        try:
            yield
        finally:
            _should_leave = before


def leave_if_asked(what: str):
    """Raise SystemExit(STOPPED) if the run was asked to stop.

    Every process calls it between two parts of work that saves nothing on the way. (Training does
    not use it: it saves before it leaves.) Outside of `stoppable` nothing happens.

    Args:
        what: the work that is given up, for the message.
    """
    if _should_leave is not None and _should_leave():
        say(f"asked to stop; {what} is left and begins again with the next start")
        raise SystemExit(STOPPED)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, or one phase of it: its mesh, its folder and its observers.

    Attributes:
        folder: holds the files of the run, or the checkpoints of the phase.
        writer: takes the metrics of all phases.
        should_stop: should_stop() -> whether this process was asked to save and exit; called after
            every step.
        phase: the name of the phase in metrics and messages.
        profile: traces some steps of each phase, if it is not None.
        watchdog: looks for a step that is stuck, if it is not None.
        strict: end at a damaged checkpoint; otherwise an earlier one is used.
    """

    mesh: Mesh
    folder: Path
    writer: MetricsWriter
    should_stop: Callable[[], bool] = lambda: False
    phase: str = ""
    profile: Profile | None = None
    watchdog: Watchdog | None = None
    strict: bool = False

    def of(self, phase: str, folder: Path | None = None) -> "Run":
        """Return this run in one of its phases.

        Args:
            folder: holds the phase's files; by default self.folder / phase.
        """
        return dataclasses.replace(self, phase=phase, folder=folder or self.folder / phase)

    def within(self, folder: Path) -> "Run":
        """Return this run with its files in another folder."""
        return dataclasses.replace(self, folder=folder)
