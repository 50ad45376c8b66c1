"""The TensorBoard runs of a work directory: one for each phase, and one for its measurements.

Tests: tests/training/test_boards.py, tests/training/test_metrics.py.
"""

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from deepseek_jax.files import is_remote, upload
from deepseek_jax.training.boards import group_of, markdown_table
from deepseek_jax.training.completions import COLUMNS, rows_of

# The TensorBoard run of measurements
HELD_OUT = "held_out"


class TensorBoards:
    """Writers of the TensorBoard runs in workdir/tensorboard.

    - workdir/tensorboard/PHASE has the phase's metrics as GROUP/NAME, a table of completions, and
      the config as text.
    - workdir/tensorboard/held_out has the scores of the run's measurements, the first measurement
      at step 0.

    In a bucket the files are there only after `flush` or `close`.

    Args:
        config: the run's config as a dict; None for no text.
    """

    def __init__(self, workdir: Path, config: dict | None = None):
        self.workdir, self.config = workdir, config
        # TensorBoard run -> its SummaryWriter, which has no types
        self._writers: dict[str, Any] = {}
        # The number of measurements that are written
        self._measured = 0
        # tensorboardX writes only local files. This is the folder in which they wait for the bucket
        self._waiting: Path | None = None

    def start(self, phase: str, first_step: int):
        """Begin or resume a phase: TensorBoard hides the steps from first_step on that it has."""
        # Imported here: it imports torch where that is installed, and a check of a config writes nothing
        from tensorboardX import SummaryWriter

        if phase in self._writers:
            self._writers[phase].close()
        # tensorboardX names files by the second: two writers of one second would share a file
        self._writers[phase] = writer = SummaryWriter(
            str(self._folder() / "tensorboard" / phase),
            purge_step=first_step,
            filename_suffix=f".{time.time_ns()}",
        )
        if self.config is not None:
            text = json.dumps(self.config, indent=1, default=str)
            # A block of code, in which Markdown changes nothing
            writer.add_text("config", f"```\n{text}\n```", first_step)

    def write(self, phase: str, step: int, values: dict, completions: list[dict]):
        """Add the metrics of a step and its completions.

        Args:
            values: finite numbers by metric.
            completions: the lines of completions.completions_line.
        """
        writer = self._writers[phase]
        for name, value in values.items():
            writer.add_scalar(f"{group_of(name)}/{name}", value, step)
        if completions:
            table = markdown_table(COLUMNS, rows_of(completions))
            writer.add_text("completions", table, step)
        writer.flush()

    def write_scores(self, scores: dict[str, dict]):
        """Add the scores of the measurements that are new since the last call.

        Args:
            scores: all measurements so far, as in MetricsWriter.write_scores.
        """
        if HELD_OUT not in self._writers:
            self.start(HELD_OUT, 0)
        writer = self._writers[HELD_OUT]
        for index, (measurement, intervals) in list(enumerate(scores.items()))[self._measured :]:
            rows = [(score, *interval) for score, interval in intervals.items()]
            for score, mean, _, _ in rows:
                writer.add_scalar(f"{HELD_OUT}/{score}", mean, index)
            columns = (measurement, "mean", "low", "high")
            writer.add_text(HELD_OUT, markdown_table(columns, rows), index)
        self._measured = len(scores)
        writer.flush()

    def flush(self):
        """Copy the files to the bucket, if the work directory is in one."""
        if self._waiting is not None:
            for writer in self._writers.values():
                writer.flush()
            upload(self._waiting, self.workdir)

    def close(self):
        """Flush and close all files; phases can be started again."""
        for writer in self._writers.values():
            writer.close()
        if self._waiting is not None:
            upload(self._waiting, self.workdir)
            shutil.rmtree(self._waiting)
        self._writers, self._measured, self._waiting = {}, 0, None

    def _folder(self):
        """Return the local folder that tensorboardX writes in."""
        if not is_remote(self.workdir):
            return self.workdir
        if self._waiting is None:
            self._waiting = Path(tempfile.mkdtemp(prefix="tensorboard"))
        return self._waiting
