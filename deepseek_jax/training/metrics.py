"""Where a run's numbers go, from process 0: JSON lines, boards (TensorBoard, W&B), the console."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from numpy.typing import ArrayLike

from deepseek_jax.files import as_path
from deepseek_jax.parallel.processes import is_due, say
from deepseek_jax.progress import waiting_for
from deepseek_jax.training.completions import FILE, completions_line
from deepseek_jax.training.console import StepConsole
from deepseek_jax.training.lines import METRICS, PhaseLines, read_lines
from deepseek_jax.training.tensorboard import TensorBoards
from deepseek_jax.training.wandb_board import WandbRun


class MetricsWriter:
    """Writer of a run's metrics, which writes each step once, however often the run restarts.

    It writes in workdir:

    - metrics.jsonl: one object a line, {"step": int, "phase": str, metric: float or null, ...};
    - completions.jsonl: the completions that logged steps keep, see training.completions;
    - tensorboard/: see training.tensorboard.

    Nothing is created before `start` or `write_scores`. On processes other than 0 every method
    returns at once. A local line is in its file when `write` returns. In a bucket the files of
    lines are rewritten at most every files.REWRITE_SECONDS; `flush` and `close` write all of them.

    Args:
        console_seconds: as in StepConsole.
        wandb: the W&B run that gets the same numbers, if any.
        config: the run's config, which TensorBoard shows as text; None for no text.

    Attributes:
        after_line: after_line() is called on process 0 when `write` has written; None for nothing.
    """

    def __init__(
        self,
        workdir: str | Path,
        console_seconds: float | None = None,
        wandb: WandbRun | None = None,
        config: dict | None = None,
    ):
        self.workdir = as_path(workdir)
        self.path = self.workdir / METRICS
        self._lines, self._completions = PhaseLines(self.path), PhaseLines(self.workdir / FILE)
        boards = TensorBoards(self.workdir, config), wandb
        self._boards = [board for board in boards if board is not None]
        self._started: set[str] = set()
        self._console = StepConsole(console_seconds)
        # (phase, metric) -> the number of lines in which it was not finite
        self._not_finite: Counter[tuple[str, str]] = Counter()
        self.after_line: Callable[[], None] | None = None

    def start(self, phase: str, first_step: int, num_steps: int | None = None):
        """Begin or resume a phase at first_step, and delete the lines that it logged from there on.

        A run that stopped after its last checkpoint repeats some steps. Their old lines are cut
        from the files, and TensorBoard purges them.

        Args:
            num_steps: the steps of the whole phase, for the console; None for unknown.

        Raises:
            ValueError: naming the line, for bad JSON.
        """
        if jax.process_index() != 0:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        for file in self._files():
            file.start(phase, first_step)
        # The first phase imports TensorBoard
        with waiting_for("opening the boards"):
            for board in self._boards:
                board.start(phase, first_step)
        self._started.add(phase)
        self._console.begin(phase, first_step, num_steps)

    def begin_step(self, step: int):
        """Show on the console that a step of the phase begins."""
        if jax.process_index() == 0:
            self._console.at(step)

    def end(self):
        """End the phase on the console, which prints its last line. For phases that stop, too."""
        self._console.end()

    def write(
        self,
        step: int,
        metrics: Mapping[str, ArrayLike],
        *,
        phase: str,
        completions: Sequence[dict] = (),
    ):
        """Write a step's metrics and its completions to the files, the boards and the console.

        NaN and infinities become null in the file. The console names these metrics, the first time
        and whenever their count has doubled.

        Args:
            metrics: a flat dict of scalars (Python, numpy or jax).
            completions: the groups of completions that are kept of this step, as in
                completions.completions_line.

        Raises:
            TypeError: for a value that is not a single number.
        """
        if jax.process_index() != 0:
            return
        assert phase in self._started, f"start({phase!r}, first_step) comes before write"
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        bad_names = [name for name, value in values.items() if not math.isfinite(value)]
        if bad_names:
            self._say_not_finite(phase, int(step), bad_names)
        record = {"step": int(step), "phase": phase}
        assert not record.keys() & values.keys(), "step and phase are taken"
        record |= {name: None if name in bad_names else value for name, value in values.items()}
        self._lines.add(record)
        completion_lines = [completions_line(int(step), phase, group) for group in completions]
        for line in completion_lines:
            self._completions.add(line)
        finite_values = {name: value for name, value in values.items() if name not in bad_names}
        for board in self._boards:
            board.write(phase, int(step), finite_values, completion_lines)
        self._console.show(step, values)
        if self.after_line is not None:
            self.after_line()

    def _say_not_finite(self, phase, step, bad_names):
        self._not_finite.update((phase, name) for name in bad_names)
        counts = {name: self._not_finite[phase, name] for name in bad_names}
        due_texts = [f"{name} ({count} times)" for name, count in counts.items() if is_due(count)]
        if due_texts:
            say(f"{phase}: step {step}: not finite: {', '.join(due_texts)}")

    def write_scores(self, scores: dict[str, dict]):
        """Show on the boards what the run has measured so far.

        Args:
            scores: {measurement: {score: [mean, low, high]}}, in order. low and high are None for a
                score without an interval.
        """
        if jax.process_index() != 0 or not any(scores.values()):
            return
        for board in self._boards:
            board.write_scores(scores)

    def flush(self):
        """Write everything that waits.

        The loop calls it before a checkpoint, because a run that resumes from there logs no earlier
        step again.
        """
        for output in (*self._files(), *self._boards):
            output.flush()

    def close(self):
        """Flush and close all files; the writer can be started again."""
        self._console.end()
        for board in self._boards:
            board.close()
        for file in self._files():
            file.flush()
        self._started = set()

    def _files(self):
        return self._lines, self._completions


def read_metrics(path: str | Path, phase: str) -> list[dict]:
    """Read the records of one phase from a metrics file, in order.

    A last line that a killed process left unfinished is skipped.

    Returns:
        Dicts of step, phase and the metrics.

    Raises:
        ValueError: for any other bad line.
    """
    return read_phases(path).get(phase, [])


def read_phases(path: str | Path) -> dict[str, list[dict]]:
    """Read {phase: its records, as in read_metrics}, in the order in which the phases began."""
    phases: dict[str, list[dict]] = {}
    for record in read_lines(path):
        phases.setdefault(record["phase"], []).append(record)
    return phases
