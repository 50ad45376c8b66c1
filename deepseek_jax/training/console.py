"""A run's steps on the console of process 0: a bar on a terminal, lines elsewhere, as in a notebook."""

import contextlib
import math
import sys
import time

from deepseek_jax.progress import line, waiting_for

# The console prints those of these that a phase logs, the bar the first; the files hold everything.
HEADLINE = (
    *("reward", "accuracy", "loss", "held_out_loss", "mtp_loss", "completion_length"),
    *("kl", "entropy", "grad_norm", "tokens_per_second"),
)
# On a line, and between two lines
CONSOLE_METRICS, CONSOLE_SECONDS = 6, 2.0
# Renderings of a bar a second: its time left moves between steps
BAR_RATE = 2


class StepConsole:
    """Shows the steps of one phase after another. seconds: between lines, None for CONSOLE_SECONDS; a faster
    run prints fewer, but always its last, when its phase ends. On a terminal that is the only one.
    """

    def __init__(self, seconds: float | None = None):
        self.seconds = CONSOLE_SECONDS if seconds is None else seconds
        self._phase, self._of, self._open = "", "", contextlib.ExitStack()
        self._bar = self._wait = self._latest = None
        self._shown_at = -math.inf

    def begin(self, phase: str, first_step: int, num_steps: int | None):
        """Begin to show a phase. num_steps: its last step is the one before; None for unknown."""
        self.end()
        self._phase, self._of = phase, "" if num_steps is None else f" of {num_steps}"
        if sys.stdout.isatty():
            self._bar = self._open.enter_context(_Bar(phase, first_step, num_steps))
        else:
            self._wait = self._open.enter_context(waiting_for(phase))
            self.at(first_step)

    def at(self, step: int):
        """A step begins."""
        if self._bar is not None:
            self._bar.move(step)
        elif self._wait is not None:
            self._wait.now(f"in {self._phase} step {step}{self._of}")

    def show(self, step: int, values: dict):
        """Show the numbers of a step: print them, or keep them for the end of the phase."""
        self._latest = step, values
        if self._bar is not None:
            self._bar.move(step + 1, values)
        elif time.monotonic() - self._shown_at >= self.seconds:
            self._print()

    def end(self):
        """End the phase: its last numbers are printed, if they are not yet."""
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
    """The names of the numbers that the console shows, the first one first."""
    return [name for name in HEADLINE if name in values] or list(values)


class _Bar:
    """A bar below the lines that others print: while it lives, rich takes what goes to sys.stdout and
    sys.stderr, and prints it above.
    """

    def __init__(self, phase, first_step, num_steps):
        # Few runs have a terminal
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        class Terminal(Console):
            """Does not hide the cursor, which a program that is killed could not show again."""

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
        """done: steps. values: the numbers of the latest one that was logged; None for those of before."""
        numbers = {} if values is None else {"numbers": _bar_numbers(values)}
        self._progress.update(self._task, completed=done, **numbers)


def _bar_numbers(values):
    name = headline(values)[0]
    speed = "tokens_per_second"
    shown = [f"{name} {values[name]:.4g}"]
    if speed in values and name != speed:
        shown.append(f"{values[speed]:,.0f} tokens/s")
    return "  ".join(shown)
