"""The table of a sweep, while the runs go on and at the end, and its plot."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from launch.engines import RUNNING, STOPPED, WAITING
from launch.sweeps.folder import Folder
from launch.sweeps.runs import Run

WIDTH = 120
# The least seconds between two tables with --watch
WATCH_SECONDS = 10.0


class Show:
    """The table of a sweep, which it prints.

    Attributes:
        measured: measured(run) returns recipes.results.Results.scores of a complete run.
        metric: As --metric gives it; None for the default.
        pruned: The names of runs that cannot run.
    """

    def __init__(
        self,
        folder: Folder,
        runs: list[Run],
        measured: Callable,
        metric: str | None = None,
        pruned=(),
    ):
        self.folder, self.runs, self.measured = folder, runs, measured
        self.metric, self.pruned = metric, pruned
        self._at, self._shown = -WATCH_SECONDS, None

    def watch(self, states: dict):
        """Print the table if it has changed, at most once in WATCH_SECONDS.

        Args:
            states: {name: WAITING or RUNNING} of live runs.
        """
        if time.monotonic() - self._at < WATCH_SECONDS:
            return
        self._at = time.monotonic()
        table = self._look(states)
        if table != self._shown:
            self._shown = table
            print(time.strftime("%H:%M:%S"), flush=True)
            _print(table, None)

    def last(self):
        """Print the table, and write sweep.txt and the plot sweep.png to the sweep's folder.

        Raises:
            ValueError: Some runs are complete, but none of them has the metric. The message lists
                the metrics that there are.
        """
        from deepseek_jax.reports.sweep import COMPLETE, metric_names
        from deepseek_jax.reports.sweep_plot import plot_sweep

        table = self._look({})
        with open(self.folder.path / "sweep.txt", "w") as file:
            _print(table, file)
        _print(table, None)
        complete = [row for row in table.rows if row.status == COMPLETE]
        if any(row.value is not None for row in complete):
            path = self.folder.path / "sweep.png"
            plot_sweep(table.rows, table.metric, path)
            print(f"{path.with_suffix('.txt')} and {path.name}: the table and the plot", flush=True)
        elif complete and self.metric is not None:
            run = self.runs[table.rows.index(complete[0])]
            names = ", ".join(metric_names(self.measured(run), self._workdir(run)))
            raise ValueError(f"--metric={self.metric} is of no complete run; there are {names}")

    def _look(self, states):
        """Return the _Table of the runs as they are now."""
        # Imported here because it imports jax, and a mistake should not wait for that
        from deepseek_jax.reports.sweep import COMPLETE, SweepRun, headline, value_of

        complete = self.folder.complete()
        statuses = [self._status(run, states.get(run.name), complete) for run in self.runs]
        # A run that is not complete may have the scores of another config, or of an earlier stage
        measured = [
            self.measured(run) if status == COMPLETE else {}
            for run, status in zip(self.runs, statuses, strict=True)
        ]
        metric = self.metric or headline(measured)
        rows = [
            SweepRun(run.overrides, status, value_of(scores, self._workdir(run), metric))
            for run, status, scores in zip(self.runs, statuses, measured, strict=True)
        ]
        return _Table(rows, metric)

    def _status(self, run, state, complete):
        from deepseek_jax.reports.sweep import COMPLETE, progress

        if state == RUNNING:
            return " at ".join(filter(None, ("running", progress(self._workdir(run)))))
        if state == WAITING:
            return "waiting"
        if complete.get(run.name) == run.record:
            return COMPLETE
        if run.name in self.pruned:
            return "pruned"
        if run.name not in self.folder.jobs():
            return "not started"
        status = self.folder.status(run.name)
        if status == STOPPED:
            return "stopped"
        return "ended" if status is None else f"failed ({status})"

    def _workdir(self, run) -> Path:
        return self.folder.path / run.name


class _Table(NamedTuple):
    """The content of a table.

    Attributes:
        rows: A reports.sweep.SweepRun for each run.
        metric: The metric that the rows show.
    """

    rows: list
    metric: str | None


def _print(table, file):
    from deepseek_jax.reports.sweep import sweep_table

    Console(width=WIDTH, file=file).print(sweep_table(*table))
