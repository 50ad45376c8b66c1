"""Run: the mesh, the folder, the metrics writer and the stop request that launch hands to a recipe."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from etils.epath import Path
from jax.sharding import Mesh

if TYPE_CHECKING:
    from deepseek_jax.training.metrics import MetricsWriter
    from deepseek_jax.training.profile import Profile
    from deepseek_jax.training.watchdog import Watchdog

# Exit status of a run that was asked to stop and has saved: start it again to resume. The number is
# EX_TEMPFAIL of sysexits.h
STOPPED = 75


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
