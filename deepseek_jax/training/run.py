"""What a run gets from outside: its mesh, its folder, its writer, and when to stop."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from deepseek_jax.training.metrics import MetricsWriter


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, or one phase of it.

    folder: where it keeps its files; a phase keeps its checkpoints there. writer: takes the metrics of all
    phases. should_stop() is asked after every step: has somebody asked this process to save and leave?
    phase: the name of the phase in metrics and messages.
    """

    mesh: Mesh
    folder: Path
    writer: MetricsWriter
    should_stop: Callable[[], bool] = lambda: False
    phase: str = ""

    def of(self, phase, folder=None):
        """The same run in one of its phases, which keeps its files in `folder`: default folder/phase."""
        return dataclasses.replace(self, phase=phase, folder=folder or self.folder / phase)

    def within(self, folder):
        """The same run with its files in another folder."""
        return dataclasses.replace(self, folder=folder)
