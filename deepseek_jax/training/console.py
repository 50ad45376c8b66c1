"""A run's steps on the console of process 0: a bar on a terminal, lines elsewhere."""

import contextlib
import math
import sys
import time

from deepseek_jax.progress import Wait, line, waiting_for

# Metrics for the console, the most important first. A line has those that the phase logs, the bar
# only the first; the files have all metrics
HEADLINE = (
    *("reward", "accuracy", "loss", "held_out_loss", "mtp_loss", "completion_length"),
    *("kl", "entropy", "grad_norm", "tokens_per_second"),
)
# Most metrics on a line; seconds between two lines
CONSOLE_METRICS, CONSOLE_SECONDS = 6, 2.0
# Renderings of the bar a second: its estimate of the remaining time changes between steps
BAR_RATE = 2


class StepConsole:
    """Console output of a run's steps, one phase after another.

    On a terminal it shows a bar. Elsewhere, as in a notebook, it prints a line at most every
    `seconds`. In both cases it prints the phase's last numbers when the phase ends.

    Args:
        seconds: the seconds between two lines; None for CONSOLE_SECONDS.
    """

    def __init__(self, seconds: float | None = None):
        self.seconds = CONSOLE_SECONDS if seconds is None else seconds
        self._phase, self._of, self._open = "", "", contextlib.ExitStack()
        self._bar: _Bar | None = None
        self._wait: Wait | None = None
        # The latest step and its numbers, until they are printed
        self._latest: tuple[int, dict] | None = None
        self._shown_at = -math.inf

    def begin(self, phase: str, first_step: int, num_steps: int | None):
        """Begin to show a phase.

        Args:
            num_steps: the steps of the whole phase: its last step is num_steps - 1. None for
                unknown.
        """
        self.end()
        self._phase, self._of = phase, "" if num_steps is None else f" of {num_steps}"
        if sys.stdout.isatty():
            self._bar = self._open.enter_context(_Bar(phase, first_step, num_steps))
        else:
            self._wait = self._open.enter_context(waiting_for(phase))
            self.at(first_step)

    def at(self, step: int):
        """Show that a step begins."""
        if self._bar is not None:
            self._bar.move(step)
        elif self._wait is not None:
            self._wait.now(f"in {self._phase} step {step}{self._of}")

    def show(self, step: int, values: dict):
        """Show the numbers of a step: on the bar, or as a line if the last line is old enough.

        `end` prints the latest numbers that were not printed.
        """
        self._latest = step, values
        if self._bar is not None:
            self._bar.move(step + 1, values)
        elif time.monotonic() - self._shown_at >= self.seconds:
            self._print()

    def end(self):
        """End the phase, and print its last numbers if they are not printed yet."""
        self._open.close()
        self._bar = self._wait = None
        self._print()

    def _print(self):
        if self._latest is None:
            return
        step, values = self._latest
        numbers = [f"  {name} {values[name]:.4g}" for name in headline(values)[:CONSOLE_METRICS]]
        line(f"{self._phase} step {step}{self._of}{''.join(numbers)}")
        self._latest, self._shown_at = None, time.monotonic()


def headline(values: dict):
    """Return the names of the metrics to show, the most important one first.

    These are the HEADLINE metrics among the values, or all names where there are no HEADLINE
    metrics.
    """
    return [name for name in HEADLINE if name in values] or list(values)


class _Bar:
    """A bar that stays below the lines that others print.

    While it is shown, rich captures sys.stdout and sys.stderr, and prints their lines above the
    bar.
    """

    def __init__(self, phase, first_step, num_steps):
        # Imported here, because few runs have a terminal
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        class Terminal(Console):
            """A Console that does not hide the cursor: a killed program could not show it again."""

            def show_cursor(self, show=True):
                return False

        self._progress = Progress(
            TextColumn("{task.description}", style="bold cyan", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Terminal(highlight=False),
            refresh_per_second=BAR_RATE,
            transient=True,
        )
        self._task = self._progress.add_task(
            phase, completed=first_step, total=num_steps, numbers=""
        )

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *_):
        self._progress.stop()

    def move(self, done, values=None):
        """Move the bar to `done` steps.

        Args:
            values: the numbers of the latest logged step; None leaves the numbers on the bar
                unchanged.
        """
        numbers = {} if values is None else {"numbers": _bar_numbers(values)}
        self._progress.update(self._task, completed=done, **numbers)


def _bar_numbers(values):
    name = headline(values)[0]
    speed = "tokens_per_second"
    texts = [f"{name} {values[name]:.4g}"]
    if speed in values and name != speed:
        texts.append(f"{values[speed]:,.0f} tokens/s")
    return "  ".join(texts)
