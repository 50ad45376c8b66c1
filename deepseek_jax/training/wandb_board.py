"""Weights & Biases, a board beside TensorBoard: a work directory is one W&B run, however often it resumes."""

import importlib.util
import math
import os
import shutil
import sys
import uuid
from pathlib import Path

from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.training.boards import GROUPS, OTHER, group_of
from deepseek_jax.training.completions import COLUMNS, FILE, read_completions, rows_of
from deepseek_jax.training.lines import METRICS, read_lines

# In the work directory
ID_FILE = "wandb_id"


class WandbRun:
    """The W&B run of a work directory: its metrics as GROUP/PHASE/NAME, completions/PHASE, a table, and the
    scores of measurements as its summary.

    W&B makes a section of what stands before the first slash: as on TensorBoard, a section is a group, with
    the charts of all phases; a run has a few groups, and R1 a dozen phases.
    project: PROJECT or ENTITY/PROJECT. config: that of the run, a dict, shown with it. The run's id is in the
    work directory: a run that resumes there goes on in the same W&B run. W&B has no way to take back steps:
    those that a run repeats after its last checkpoint appear twice, with the same values. Offline each start
    makes files of its own, and `wandb sync` replaces a run by the latest files of its id. So these begin with
    all lines that the work directory has, and the files before them are removed: no line is missing or there
    twice, and what W&B itself measured of the machine is that of the latest start. WANDB_MODE=offline and the
    other variables of W&B's are read as usual. Raises ValueError where wandb is not installed.
    """

    def __init__(self, project: str, workdir: Path, config: dict):
        if importlib.util.find_spec("wandb") is None:
            raise ValueError(
                f"--wandb={project}: the package wandb is not installed; pip install wandb, or leave out "
                "--wandb, and have the metrics in metrics.jsonl and TensorBoard alone"
            )
        self.project, self.workdir, self.config = project, workdir, config
        # The phases that the open W&B run has lines of; the numbers of its summary
        self._run, self._phases, self._scores = None, set(), {}

    def log_in(self):
        """Raise ValueError where W&B has no key for this account: the first board would, late."""
        if not first_process():
            return
        # Here, because it is an extra
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
        # The phase is redone in one process: the lines of before must go
        if self._run is not None and self._run.offline and phase in self._phases:
            self.close()
        if self._run is None:
            self._open()
        self._define(phase)

    def write(self, phase: str, step: int, values: dict, completions: list[dict]):
        """Send the metrics of a step, finite numbers, and its lines of completions, as one line."""
        line = {f"{group_of(name)}/{phase}/{name}": value for name, value in values.items()}
        if completions:
            # Here, because it is an extra
            import wandb

            line[f"completions/{phase}"] = wandb.Table(COLUMNS, [*map(list, rows_of(completions))])
        self._run.log(line | {f"{phase}/step": step})

    def write_scores(self, scores: dict[str, dict]):
        """Put the scores of measurements into the summary, as MetricsWriter.write_scores gets them."""
        numbers = {
            f"held_out/{measurement}/{score}{end}": value
            for measurement, found in scores.items()
            for score, interval in found.items()
            for end, value in zip(("", "/low", "/high"), interval, strict=True)
        }
        self._scores = {name: number for name, number in numbers.items() if _is_finite(number)}
        if self._run is None:
            self._open()
        else:
            self._run.summary.update(self._scores)

    def flush(self):
        """Nothing waits here: W&B's own process writes and sends."""

    def close(self):
        """End the W&B run, for now: another board opens it again. It has failed if an exception passes."""
        if self._run is not None:
            self._run.finish(exit_code=int(sys.exc_info()[0] is not None))
        self._run, self._phases = None, set()

    def _define(self, phase):
        """Let the phase count its own steps: W&B's one counter would refuse those of a second phase."""
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
        """Write the lines of the work directory."""
        groups = {}
        for line in read_completions(self.workdir / FILE):
            groups.setdefault((line["phase"], line["step"]), []).append(line)
        for line in read_lines(self.workdir / METRICS):
            phase, step = line.pop("phase"), line.pop("step")
            values = {name: value for name, value in line.items() if value is not None}
            self._define(phase)
            self.write(phase, step, values, groups.get((phase, step), []))

    def _remove_earlier(self):
        """Remove the files of earlier starts."""
        own = Path(self._run.dir).parent
        for folder in own.parent.glob(f"offline-run-*-{self._run.id}"):
            if folder != own:
                shutil.rmtree(folder, ignore_errors=True)

    def _init(self):
        # Here, because it is an extra
        import wandb

        entity, _, project = self.project.rpartition("/")
        # W&B's own files, which it sends from there; a bucket cannot hold them
        local = str(self.workdir) if os.path.isdir(self.workdir) else None
        try:
            run = wandb.init(
                project=project,
                entity=entity or None,
                id=self._id(),
                resume="allow",
                name=self.workdir.name,
                dir=local,
                config=self.config,
                # Some recipes resume with a changed config, and redo what it changes
                allow_val_change=True,
                settings=wandb.Settings(console="off", silent=True),
            )
            if run.url:
                say(f"wandb: {run.url}")
            return run
        # Such as a key that is missing
        except wandb.errors.Error as error:
            raise self._refused(error) from error

    def _id(self):
        path = self.workdir / ID_FILE
        if not path.exists():
            path.write_text(uuid.uuid4().hex[:16])
        return path.read_text()


def _is_finite(value):
    return value is not None and math.isfinite(value)
