"""Where a run's numbers go, from process 0 only: JSON lines, boards (TensorBoard, W&B) and the console."""

import json
import math
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from tensorboardX import SummaryWriter

from deepseek_jax.files import GrowingFile, as_path, is_remote, upload, write_whole
from deepseek_jax.parallel.processes import is_due, say
from deepseek_jax.training.console import StepConsole

if TYPE_CHECKING:
    from deepseek_jax.training.wandb_board import WandbRun


class MetricsWriter:
    """Writes each step's metrics once, across restarts.

    workdir/metrics.jsonl: one object a line, {"step": int, "phase": str, metric: float or null, ...}.
    workdir/tensorboard/phase: one TensorBoard run per phase ("pretrain", "grpo", ...).
    Nothing is created before `start`. On processes other than 0 every method returns at once. A local line is
    in the file when `write` returns. In a bucket metrics.jsonl is written anew at most every
    files.REWRITE_SECONDS, and both when `flush` or `close` is called.
    console_seconds: of StepConsole. wandb: the W&B run that gets the same numbers; None for none.
    """

    def __init__(
        self,
        workdir: str | Path,
        console_seconds: float | None = None,
        wandb: "WandbRun | None" = None,
    ):
        self.workdir = as_path(workdir)
        self.path, self.wandb = self.workdir / "metrics.jsonl", wandb
        self._boards, self._file = {}, GrowingFile(self.path)
        # tensorboardX writes local files alone: where they wait for the bucket
        self._board_folder = None
        self._console = StepConsole(console_seconds)
        # (phase, metric) -> lines in which it was not finite
        self._not_finite = Counter()

    def start(self, phase: str, first_step: int, num_steps: int | None = None):
        """Begin or resume a phase at first_step: the lines that it logged from there on are deleted.
        num_steps: of the phase, for the console; None for unknown.

        A run that stopped after its last checkpoint repeats some steps. Their old lines are cut
        from the file and purged by TensorBoard. Raises ValueError, naming the line, for bad JSON.
        """
        if jax.process_index() != 0:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._file.flush()
        _cut(self.path, phase, first_step)
        self._file = GrowingFile(self.path)
        if phase in self._boards:
            self._boards[phase].close()
        # tensorboardX names files by the second: two writers of one second would share a file
        tensorboard = SummaryWriter(
            str(self._boards_in() / "tensorboard" / phase),
            purge_step=first_step,
            filename_suffix=f".{time.time_ns()}",
        )
        others = [] if self.wandb is None else [self.wandb.board(phase)]
        self._boards[phase] = _Boards(tensorboard, *others)
        self._console.begin(phase, first_step, num_steps)

    def at(self, step: int):
        """A step of the phase that was started begins: the console shows it."""
        if jax.process_index() == 0:
            self._console.at(step)

    def end(self):
        """The phase that was started has ended, or stops: the console prints its last line."""
        self._console.end()

    def write(self, step: int, metrics, *, phase: str):
        """Log a flat dict of scalars (Python, numpy or jax) at an update count.

        NaN and infinities become null in the file, and the console says so, at doublings. TypeError where a
        value is not one number.
        """
        if jax.process_index() != 0:
            return
        assert phase in self._boards, f"start({phase!r}, first_step) comes before write"
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            self._say_not_finite(phase, int(step), bad)
        record = {"step": int(step), "phase": phase}
        assert not record.keys() & values.keys(), "step and phase are taken"
        record |= {name: None if name in bad else value for name, value in values.items()}
        self._file.add(json.dumps(record, allow_nan=False) + "\n")
        for name in [name for name in values if name not in bad]:
            self._boards[phase].add_scalar(name, values[name], int(step))
        # The line is whole: W&B takes it as one, and it outlives the process
        self._boards[phase].flush()
        self._console.show(step, values)

    def _say_not_finite(self, phase, step, bad):
        self._not_finite.update((phase, name) for name in bad)
        counts = {name: self._not_finite[phase, name] for name in bad}
        due = [f"{name} ({count} times)" for name, count in counts.items() if is_due(count)]
        if due:
            say(f"{phase}: step {step}: not finite: {', '.join(due)}")

    def flush(self):
        """Write what waits: before a checkpoint, because a run that resumes from it logs no earlier step."""
        self._file.flush()
        if self._board_folder is not None:
            for board in self._boards.values():
                board.flush()
            upload(self._board_folder, self.workdir)

    def close(self):
        """Flush and close all files; the writer can be started again."""
        self._console.end()
        for board in self._boards.values():
            board.close()
        if self.wandb is not None:
            self.wandb.close()
        self.flush()
        self._boards = {}
        if self._board_folder is not None:
            shutil.rmtree(self._board_folder)
            self._board_folder = None

    def _boards_in(self):
        """The local folder that tensorboardX writes in."""
        if not is_remote(self.workdir):
            return self.workdir
        if self._board_folder is None:
            self._board_folder = Path(tempfile.mkdtemp(prefix="tensorboard"))
        return self._board_folder


class _Boards:
    """TensorBoard's writer and others with its methods, as one."""

    def __init__(self, *boards):
        self.boards = boards

    def add_scalar(self, name, value, step):
        for board in self.boards:
            board.add_scalar(name, value, step)

    def flush(self):
        for board in self.boards:
            board.flush()

    def close(self):
        for board in self.boards:
            board.close()


def read_metrics(path: str | Path, phase: str) -> list[dict]:
    """The records of one phase of a metrics file, in order: dicts of step, phase and the metrics.

    A last line that a killed process left unfinished is skipped. Raises ValueError at any other
    bad line.
    """
    return read_phases(path).get(phase, [])


def read_phases(path: str | Path):
    """phase -> its records, as from read_metrics, in the order in which the phases began."""
    phases = {}
    for _, record in _lines(as_path(path)):
        phases.setdefault(record["phase"], []).append(record)
    return phases


def _lines(path):
    """(line, record) pairs. A line without its newline was cut short and is skipped."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_text().splitlines(keepends=True), start=1):
        if line.endswith("\n"):
            try:
                yield line, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not JSON ({error}); mend it or move the file away"
                ) from error


def _cut(path, phase, first_step):
    """Drop the lines of `phase` from first_step on, and an unfinished last line, atomically."""
    if not path.exists():
        return
    kept = [line for line, r in _lines(path) if r["phase"] != phase or r["step"] < first_step]
    write_whole(path, "".join(kept))
