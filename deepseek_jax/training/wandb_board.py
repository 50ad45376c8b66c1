"""Weights & Biases, a board beside TensorBoard: a work directory is one W&B run, however often it resumes."""

import importlib.util
import os
import sys
import uuid
from pathlib import Path

from deepseek_jax.parallel.processes import first_process, say

# In the work directory
ID_FILE = "wandb_id"


class WandbRun:
    """The W&B run of a work directory. board(phase) is used as a tensorboardX.SummaryWriter is.

    project: PROJECT or ENTITY/PROJECT. config: that of the run, a dict, shown with it. The run's id is in the
    work directory: a run that resumes there goes on in the same W&B run. W&B has no way to take back steps:
    those that a run repeats after its last checkpoint appear twice, with the same values. WANDB_MODE=offline
    and the other variables of W&B's are read as usual. Raises ValueError where wandb is not installed.
    """

    def __init__(self, project: str, workdir: Path, config: dict):
        if importlib.util.find_spec("wandb") is None:
            raise ValueError(
                f"--wandb={project}: the package wandb is not installed; pip install wandb, or leave out "
                "--wandb, and have the metrics in metrics.jsonl and TensorBoard alone"
            )
        self.project, self.workdir, self.config = project, workdir, config
        self._run = None

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

    def board(self, phase: str):
        """The board of one phase. The first opens the W&B run."""
        if self._run is None:
            self._run = self._open()
        # Each phase counts its own steps; W&B's one counter would refuse those of a second phase
        self._run.define_metric(f"{phase}/step")
        self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        return _Board(self._run, phase)

    def close(self):
        """End the W&B run, for now: another board opens it again. It has failed if an exception passes."""
        if self._run is not None:
            self._run.finish(exit_code=int(sys.exc_info()[0] is not None))
        self._run = None

    def _open(self):
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


class _Board:
    """The part of SummaryWriter that MetricsWriter uses."""

    def __init__(self, run, phase):
        self.run, self.phase = run, phase
        self.line = {}

    def add_scalar(self, name, value, step):
        """Add a metric to the line of this step."""
        self.line |= {f"{self.phase}/{name}": value, f"{self.phase}/step": step}

    def flush(self):
        """Send the line."""
        if self.line:
            self.run.log(self.line)
        self.line = {}

    def close(self):
        """Send what waits."""
        self.flush()
