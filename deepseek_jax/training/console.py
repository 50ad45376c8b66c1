"""A run's steps on the console of process 0: a bar on a terminal, lines elsewhere."""

import collections
import contextlib
import math
import shutil
import statistics
import time

from deepseek_jax import progress

# Metric -> its text, the most important first. A line has as many as fit, and the files have all
# metrics
SHOWN = {
    "reward": "reward {:z4,.2f}",
    "accuracy": "right {:z4.0%}",
    "loss": "loss {:z6,.3f}",
    "held_out_loss": "held out {:z6,.3f}",
    "mtp_loss": "MTP {:z6,.3f}",
    "completion_length": "length {:z4,.1f}",
    "tokens_per_second": "{:z6,.0f} tok/s",
    "entropy": "entropy {:z4.2f}",
    "kl": "KL {:z5.3f}",
    "grad_norm": "gradient {:z4,.2f}",
}
# A group's advantages sum to 0, and so does the loss of GRPO, whatever is learned
SAYS_NOTHING = {"reward": "loss"}
# Columns of a line that is printed; seconds between two lines
WIDTH, CONSOLE_SECONDS = 80, 2.0
# Columns of the time left, and of the bar
LEFT_WIDTH, BAR_WIDTH = 13, 8
# The median pace of this many of the latest intervals gives the time left: a compilation in one of
# them does not count
PACES = 20


class StepConsole:
    """Console output of a run's steps, one phase after another.

    On a terminal it shows a bar. Elsewhere, as in a notebook, it prints a line at most every
    `seconds`. In both cases it prints the phase's last numbers when the phase ends.

    Args:
        seconds: the seconds between two lines; None for CONSOLE_SECONDS.
    """

    def __init__(self, seconds: float | None = None):
        self.seconds = CONSOLE_SECONDS if seconds is None else seconds
        self._phase, self._num_steps = "", 0
        # Steps that have ended, and those up to the latest numbers
        self._at = self._done = 0
        self._open = contextlib.ExitStack()
        self._wait: progress.Wait | None = None
        # Metric -> the columns of its text, for the metrics that the phase has shown
        self._widths: dict[str, int] = {}
        # Seconds a step between two steps with numbers, and when the latest one ended. Only there
        # does the loop wait for the device
        self._paces: collections.deque[float] = collections.deque(maxlen=PACES)
        self._ended_at: float | None = None
        # The latest numbers, and whether they are to be printed
        self._values: dict[str, float] = {}
        self._is_due = False
        self._shown_at = -math.inf

    def begin(self, phase: str, first_step: int, num_steps: int | None):
        """Begin to show a phase.

        Args:
            num_steps: the steps of the whole phase: its last step is num_steps - 1. None for
                unknown.
        """
        self.end()
        self._phase, self._num_steps = phase, num_steps or 0
        self._at = self._done = first_step
        self._ended_at = None
        self._values, self._widths = {}, {}
        self._paces.clear()
        if progress.has_foot():
            self._open.enter_context(progress.bar(self._bar))
        else:
            self._wait = self._open.enter_context(progress.waiting_for(phase))
            self.at(first_step)

    def at(self, step: int):
        """Show that a step begins."""
        self._at = step
        if self._wait is not None:
            of = f" of {self._num_steps}" if self._num_steps else ""
            self._wait.now(f"in step {step + 1}{of} of {self._phase}")

    def show(self, step: int, values: dict[str, float]):
        """Show the numbers of a step: on the bar, or as a line if the last line is old enough.

        `end` prints the latest numbers that were not printed.
        """
        done, now = step + 1, time.monotonic()
        # The first interval would have the first step, which compiles
        if self._ended_at is not None:
            self._paces.append((now - self._ended_at) / max(1, done - self._done))
        self._at = self._done = done
        self._ended_at, self._values, self._is_due = now, values, True
        if self._wait is not None and now - self._shown_at >= self.seconds:
            self._print()

    def end(self):
        """End the phase, and print its last numbers if they are not printed yet."""
        self._open.close()
        self._wait = None
        self._print()

    def _print(self):
        if self._is_due:
            width = shutil.get_terminal_size().columns if progress.has_foot() else WIDTH
            progress.line(self._row(f"{self._phase}  {self._counted(self._done)}", width))
            self._is_due, self._shown_at = False, time.monotonic()

    def _counted(self, done):
        total = str(self._num_steps)
        return f"{done:{len(total)}}/{total}" if self._num_steps else str(done)

    def _bar(self, width):
        full = round(BAR_WIDTH * self._at / self._num_steps) if self._num_steps else 0
        bar = "━" * full + "─" * (BAR_WIDTH - full)
        return self._row(f"{self._phase}  {bar}  {self._counted(self._at)}", width)

    def _row(self, beginning, width):
        """Return the beginning, as many numbers as fit, and the time left."""
        row, room = beginning, width - LEFT_WIDTH
        for name, text in self._texts().items():
            self._widths[name] = max(self._widths.get(name, 0), len(text))
        # A metric that only some lines have leaves its column empty in the others
        for name in sorted(self._widths, key=_rank):
            if len(row) + 2 + self._widths[name] <= room:
                row += "  " + self._texts().get(name, "").rjust(self._widths[name])
        return f"{row}  {self._left()}".rstrip()[:width]

    def _texts(self):
        values = self._values
        hidden = {name for shown, name in SAYS_NOTHING.items() if shown in values}
        texts = {n: SHOWN[n].format(values[n]) for n in SHOWN if n in values and n not in hidden}
        return texts or {name: f"{name} {value:z,.3f}" for name, value in values.items()}

    def _left(self):
        """Return the time left of the phase in words; "" while it is unknown, and at the end."""
        # The second step may compile too
        if len(self._paces) < 2 or self._at >= self._num_steps:
            return ""
        seconds = statistics.median_low(self._paces) * (self._num_steps - self._at)
        return f"{progress.duration(seconds)} left"


def _rank(name):
    """Return the place of a metric in a line: names that SHOWN does not have come last."""
    return list(SHOWN).index(name) if name in SHOWN else len(SHOWN)
