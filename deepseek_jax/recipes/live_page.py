"""Draw a run's page while the run goes, for little time, and without a risk for the run."""

import time
import traceback
from collections.abc import Callable

from deepseek_jax.parallel.processes import first_process, say

# Least seconds between two pages
EVERY_SECONDS = 60.0
# The next page is drawn after this many times the seconds that the last one took, so that pages take
# about half a percent of a run's time, and less than 1% with the first one
PAUSE = 200


class LivePage:
    """The page of a run, which process 0 draws again as the run goes.

    A page that cannot be drawn does not end the run. What is wrong is printed, once.

    Args:
        write: write() draws the page from what the run has written so far.
    """

    def __init__(self, write: Callable[[], None]):
        self.write = write
        self.due = time.monotonic() + EVERY_SECONDS
        # Whether the run has written something that the page does not show
        self.is_behind = False
        self._said: set[str] = set()

    def after_line(self):
        """Draw the page after a new line of metrics, unless a page was drawn shortly before."""
        self.is_behind = True
        if time.monotonic() >= self.due:
            self.draw()

    def at_end(self):
        """Draw the page where the run ends early, if it does not show the last lines."""
        if self.is_behind:
            self.draw()

    def draw(self):
        """Draw the page now."""
        if not first_process():
            return
        began = time.monotonic()
        try:
            self.write()
        # Whatever is wrong with a page, the run is worth more
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._say(
                f"report.html was not drawn, which does not change the run: {type(error).__name__}: {error} "
                f"({where.filename}, line {where.lineno})"
            )
        ended = time.monotonic()
        self.due = ended + max(EVERY_SECONDS, PAUSE * (ended - began))
        self.is_behind = False

    def _say(self, message):
        if message not in self._said:
            self._said.add(message)
            say(message)
