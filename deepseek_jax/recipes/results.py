"""Results of a run so far, read from its files without a device, for tables and pages."""

import dataclasses
from pathlib import Path
from typing import Any

from deepseek_jax.files import read_json, read_object
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.reports.run_page import is_measured, lineage
from deepseek_jax.training.lineage import RECORD


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run has written so far.

    Attributes:
        settings: The settings of the whole config.
        stages: The recipe's list.
        folder: The folder of the run.
    """

    settings: Any
    stages: list[Stage]
    folder: Path

    def stage(self, name: str) -> Stage:
        """Return the stage with this name."""
        return next(stage for stage in self.stages if stage.name == name)

    def path_of(self, name: str) -> str | Path:
        """Return the path of a stage's parameters; for a checkpoint, its own path."""
        return self.stage(name).path_of_params(self.folder / name)

    def titles(self) -> dict[str, str]:
        """Return {stage: its title on the page} of all stages except measurements."""
        return {
            stage.name: stage.title or stage.name for stage in self.stages if not stage.measures
        }

    def complete(self) -> bool:
        """Return True if all stages are complete."""
        return all(map(self._is_complete, self.stages))

    def state(self) -> str:
        """Return "complete", or which stage is the first that is not, as "stage 3 of 12, zero"."""
        for number, stage in enumerate(self.stages, start=1):
            if not self._is_complete(stage):
                return f"stage {number} of {len(self.stages)}, {stage.name}"
        return "complete"

    def _is_complete(self, stage):
        file = self.folder / stage.name / RECORD
        return file.exists() and read_object(file)["complete"]

    def lineage(self) -> list[dict]:
        """Return Page.stages: see run_page.lineage."""
        return lineage(self.folder, self.titles())

    def measurements(self) -> dict[str, tuple[Stage, Path]]:
        """Return {measurement: (its stage, its file)}, in order; the file may not be there yet."""
        return {
            name: (stage, self.folder / file)
            for stage in self.stages
            for name, file in stage.measurements().items()
        }

    def scores(self) -> dict[str, dict[str, list]]:
        """Return {measurement: {score: [mean, low, high]}} of the files that are there, in order.

        The last measurement of a complete run is of the run's result.
        """
        return {
            name: stage.scores(read_json(file))
            for name, (stage, file) in self.measurements().items()
            if file.exists()
        }

    def contents(self) -> dict[str, Any]:
        """Return {measurement: the content of its file}, without outdated measurements.

        A measurement is outdated if the stage that it measured has been run again since.
        """
        stages, contents = {stage["name"]: stage for stage in self.lineage()}, {}
        for name, (stage, file) in self.measurements().items():
            start = stages.get(stage.start) if stage.measures else None
            is_current = start is None or is_measured(self.folder, stage.name, start)
            if file.exists() and is_current:
                contents[name] = read_json(file)
        return contents

    def row(self, measurement: str) -> str:
        """Return the name of a measurement's row of scores on the page."""
        stage, _ = self.measurements()[measurement]
        title = stage.title if stage.measures else ""
        return title or measurement.replace("_", " ")
