"""A run's steps on the console of process 0."""

import math
import time

from rich.console import Console
from rich.text import Text

# The console prints those of these that a phase logs; the files hold everything.
HEADLINE = (
    *("loss", "held_out_loss", "mtp_loss", "reward", "accuracy", "completion_length"),
    *("kl", "entropy", "grad_norm", "tokens_per_second"),
)
# On a line, and between two lines
CONSOLE_METRICS, CONSOLE_SECONDS = 6, 2.0


class StepConsole:
    """Prints lines of steps. seconds: between lines, None for CONSOLE_SECONDS; a faster run prints fewer, but
    always its last.
    """

    def __init__(self, seconds: float | None = None):
        self.seconds = CONSOLE_SECONDS if seconds is None else seconds
        self._console = Console(highlight=False)
        self._waiting, self._shown_at = None, -math.inf

    def show(self, step, values, phase):
        """Take a line: print it, or keep it for the end of the phase."""
        if self._waiting and self._waiting[0] != phase:
            # The last line of the phase before is always printed
            self.print_waiting()
        self._waiting = (phase, step, values)
        if time.monotonic() - self._shown_at >= self.seconds:
            self.print_waiting()

    def print_waiting(self):
        """Print the line that waits, if there is one."""
        if self._waiting is None:
            return
        phase, step, values = self._waiting
        names = [name for name in HEADLINE if name in values] or list(values)
        line = Text.assemble((phase, "bold cyan"), f" step {step}")
        for name in names[:CONSOLE_METRICS]:
            line.append(f"  {name} ", "dim").append(f"{values[name]:.4g}")
        self._console.print(line, soft_wrap=True)
        self._waiting, self._shown_at = None, time.monotonic()
