"""Run: the mesh, the folder, the metrics writer and the stop request that launch hands to a recipe."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from etils.epath import Path
from jax.sharding import Mesh

from deepseek_jax.parallel.processes import StopTogether, say

if TYPE_CHECKING:
    from deepseek_jax.training.metrics import MetricsWriter
    from deepseek_jax.training.profile import Profile
    from deepseek_jax.training.watchdog import Watchdog

# Exit status of a run that was asked to stop and has saved: start it again to resume. The number is
# EX_TEMPFAIL of sysexits.h
STOPPED = 75
# should_stop of the run that is under way
_should_leave = None


@contextlib.contextmanager
def stoppable(should_stop: Callable[[], bool]):
    """In the block leave_if_asked() leaves, on all processes at the same call, once should_stop() is true."""
    global _should_leave
    before = _should_leave
    with StopTogether(should_stop) as _should_leave:
        try:
            yield
        finally:
            _should_leave = before


def leave_if_asked(what: str):
    """Raise SystemExit(STOPPED) where the run was asked to stop. Every process calls it between parts of
    `what`, of which nothing is saved; training saves before it leaves. Outside a run nothing happens.
    """
    if _should_leave is not None and _should_leave():
        say(f"asked to stop; {what} is left and begins again with the next start")
        raise SystemExit(STOPPED)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, or one phase of it.

    folder: holds the files of the run, or the checkpoints of the phase. writer: takes the metrics of all
    phases. should_stop(): whether this process was asked to save and exit; called after every step. phase:
    the name of the phase in metrics and messages. profile: traces some steps of each phase. watchdog: looks
    for a step that is stuck. None for neither. strict: end at a damaged checkpoint; else an earlier one is
    used.
    """

    mesh: Mesh
    folder: Path
    writer: "MetricsWriter"
    should_stop: Callable[[], bool] = lambda: False
    phase: str = ""
    profile: "Profile | None" = None
    watchdog: "Watchdog | None" = None
    strict: bool = False

    def of(self, phase: str, folder: Path | None = None):
        """The same run in one of its phases, whose files are in `folder`: default self.folder/phase."""
        return dataclasses.replace(self, phase=phase, folder=folder or self.folder / phase)

    def within(self, folder: Path):
        """The same run with its files in another folder."""
        return dataclasses.replace(self, folder=folder)
