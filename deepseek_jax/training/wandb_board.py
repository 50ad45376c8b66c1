"""Weights & Biases, a second board: a work directory is one W&B run, however often it resumes."""

import importlib.util
import math
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.training.boards import OTHER, group_of
from deepseek_jax.training.completions import COLUMNS, FILE, read_completions, rows_of
from deepseek_jax.training.lines import METRICS, read_lines
from deepseek_jax.training.metric_names import GROUPS

# The file in the work directory that has the run's id
ID_FILE = "wandb_id"


class WandbRun:
    """The W&B run of a work directory.

    It has the metrics as GROUP/PHASE/NAME, a table completions/PHASE, and the scores of
    measurements as its summary. W&B makes a section of the part before the first slash. So a
    section is a group, as on TensorBoard, with the charts of all phases: a run has a few groups,
    and R1 has a dozen phases.

    The run's id is in the work directory, so a run that resumes there continues the same W&B run.
    W&B has no way to take back steps: steps that a run repeats after its last checkpoint appear
    twice, with the same values.

    Offline, each start makes files of its own, and `wandb sync` replaces a run by the latest files
    of its id. So the files of a start begin with all lines that the work directory has, and the
    files of earlier starts are removed: no line is missing or there twice. What W&B itself measured
    of the machine is then only from the latest start.

    WANDB_MODE=offline and W&B's other variables are read as usual.

    Args:
        project: PROJECT or ENTITY/PROJECT.
        config: the run's config, a dict, shown with the run.

    Raises:
        ValueError: if wandb is not installed.
    """

    def __init__(self, project: str, workdir: Path, config: dict):
        if importlib.util.find_spec("wandb") is None:
            raise ValueError(
                f"--wandb={project}: the package wandb is not installed; pip install wandb, or leave out "
                "--wandb, and have the metrics in metrics.jsonl and TensorBoard alone"
            )
        self.project, self.workdir, self.config = project, workdir, config
        # The open W&B run, or None; the package has no types
        self._run: Any = None
        # The phases with lines in the open W&B run; the numbers of its summary
        self._phases: set[str] = set()
        self._scores: dict[str, float] = {}

    def log_in(self):
        """Raise ValueError if W&B has no key for this account.

        Without this call the first board would raise it, late in the run.
        """
        if not first_process():
            return
        # Imported here, because wandb is an optional package
        import wandb

        try:
            wandb.login(verify=False)
        except wandb.errors.Error as error:
            raise self._refused(error) from error

    def _refused(self, error):
        return ValueError(
            f"--wandb={self.project}: {error}; run `wandb login`, or set WANDB_MODE=offline"
        )

    def start(self, phase: str, first_step: int):
        """Begin or resume a phase. The first one opens the W&B run."""
        # This process starts the phase a second time: its earlier lines must go
        if self._run is not None and self._run.offline and phase in self._phases:
            self.close()
        if self._run is None:
            self._open()
        self._define(phase)

    def write(self, phase: str, step: int, values: dict, completions: list[dict]):
        """Send the metrics of a step and its completions, as one line.

        Args:
            values: finite numbers by metric.
            completions: the lines of completions.completions_line.
        """
        line = {f"{group_of(name)}/{phase}/{name}": value for name, value in values.items()}
        if completions:
            # Imported here, because wandb is an optional package
            import wandb

            line[f"completions/{phase}"] = wandb.Table(COLUMNS, [*map(list, rows_of(completions))])
        self._run.log(line | {f"{phase}/step": step})

    def write_scores(self, scores: dict[str, dict]):
        """Put the scores of measurements into the summary.

        Args:
            scores: as in MetricsWriter.write_scores.
        """
        numbers = {
            f"held_out/{measurement}/{score}{end}": value
            for measurement, intervals in scores.items()
            for score, interval in intervals.items()
            for end, value in zip(("", "/low", "/high"), interval, strict=True)
        }
        self._scores = {name: number for name, number in numbers.items() if _is_finite(number)}
        if self._run is None:
            self._open()
        else:
            self._run.summary.update(self._scores)

    def flush(self):
        """Do nothing: W&B's own process writes and sends."""

    def close(self):
        """End the W&B run for now: a later start opens it again.

        It is marked as failed if an exception is being handled.
        """
        if self._run is not None:
            self._run.finish(exit_code=int(sys.exc_info()[0] is not None))
        self._run, self._phases = None, set()

    def _define(self, phase):
        """Give the phase a step counter of its own.

        W&B's one counter would refuse the steps of a second phase.
        """
        if phase in self._phases:
            return
        self._phases.add(phase)
        self._run.define_metric(f"{phase}/step", hidden=True)
        for name in (*(f"{group}/{phase}/*" for group in (*GROUPS, OTHER)), f"completions/{phase}"):
            self._run.define_metric(name, step_metric=f"{phase}/step")

    def _open(self):
        self._run = self._init()
        self._run.summary.update(self._scores)
        if self._run.offline:
            self._write_again()
            self._remove_earlier()

    def _write_again(self):
        """Write the lines that the work directory has."""
        groups: dict[tuple[str, int], list[dict]] = {}
        for line in read_completions(self.workdir / FILE):
            groups.setdefault((line["phase"], line["step"]), []).append(line)
        for line in read_lines(self.workdir / METRICS):
            phase, step = line.pop("phase"), line.pop("step")
            values = {name: value for name, value in line.items() if value is not None}
            self._define(phase)
            self.write(phase, step, values, groups.get((phase, step), []))

    def _remove_earlier(self):
        """Remove the files of earlier offline starts."""
        run_folder = Path(self._run.dir).parent
        for folder in run_folder.parent.glob(f"offline-run-*-{self._run.id}"):
            if folder != run_folder:
                shutil.rmtree(folder, ignore_errors=True)

    def _init(self):
        # Imported here, because wandb is an optional package
        import wandb

        entity, _, project = self.project.rpartition("/")
        # The folder of W&B's own files, from which it sends them; a bucket cannot hold them
        files_folder = str(self.workdir) if os.path.isdir(self.workdir) else None
        try:
            run = wandb.init(
                project=project,
                entity=entity or None,
                id=self._id(),
                resume="allow",
                name=self.workdir.name,
                dir=files_folder,
                config=self.config,
                # Some recipes resume with a changed config, and redo what it changes
                allow_val_change=True,
                settings=wandb.Settings(console="off", silent=True),
            )
            if run.url:
                say(f"wandb: {run.url}")
            return run
        # For example, a key is missing
        except wandb.errors.Error as error:
            raise self._refused(error) from error

    def _id(self):
        path = self.workdir / ID_FILE
        if not path.exists():
            path.write_text(uuid.uuid4().hex[:16])
        return path.read_text()


def _is_finite(value):
    return value is not None and math.isfinite(value)
