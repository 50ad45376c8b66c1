"""What a run has left so far, as its files say it: enough for tables and pages, on no device."""

import dataclasses
from pathlib import Path
from typing import Any

from deepseek_jax.files import read_json, read_object
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.reports.run_page import is_measured, lineage
from deepseek_jax.training.lineage import RECORD


@dataclasses.dataclass(frozen=True)
class Results:
    """settings: of the whole config. stages: the recipe's list. folder: of the run."""

    settings: Any
    stages: list[Stage]
    folder: Path

    def stage(self, name: str) -> Stage:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)

    def path_of(self, name: str) -> str | Path:
        """Where the parameters are that a stage left, or the checkpoint that it is."""
        return self.stage(name).path_of_params(self.folder / name)

    def titles(self) -> dict[str, str]:
        """{stage: its name on the page} of all but measurements."""
        return {
            stage.name: stage.title or stage.name for stage in self.stages if not stage.measures
        }

    def complete(self) -> bool:
        """Whether all stages have ended."""
        files = [self.folder / stage.name / RECORD for stage in self.stages]
        return all(file.exists() and read_object(file)["complete"] for file in files)

    def lineage(self) -> list[dict]:
        """Page.stages: see run_page.lineage."""
        return lineage(self.folder, self.titles())

    def measurements(self) -> dict[str, tuple[Stage, Path]]:
        """{measurement: (its stage, its file)}, in order, whether it is there or not."""
        return {
            name: (stage, self.folder / file)
            for stage in self.stages
            for name, file in stage.measurements().items()
        }

    def scores(self) -> dict[str, dict[str, list]]:
        """{measurement: {score: [mean, low, high]}} of what is there, in order. The last measurement of a
        complete run is of what it leaves.
        """
        return {
            name: stage.scores(read_json(file))
            for name, (stage, file) in self.measurements().items()
            if file.exists()
        }

    def found(self) -> dict[str, Any]:
        """{measurement: what it found}, without those of an earlier version of a stage."""
        stages, found = {stage["name"]: stage for stage in self.lineage()}, {}
        for name, (stage, file) in self.measurements().items():
            start = stages.get(stage.start) if stage.measures else None
            current = start is None or is_measured(self.folder, stage.name, start)
            if file.exists() and current:
                found[name] = read_json(file)
        return found

    def row(self, measurement: str) -> str:
        """The name of a measurement's scores on the page."""
        stage, _ = self.measurements()[measurement]
        title = stage.title if stage.measures else ""
        return title or measurement.replace("_", " ")
