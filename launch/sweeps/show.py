"""What a reader sees of a sweep: its table, live and at the end, and its plot."""

import time
from pathlib import Path

from rich.console import Console

from launch.engines import RUNNING, STOPPED, WAITING
from launch.sweeps.folder import Folder
from launch.sweeps.runs import Run

WIDTH = 120
# Between two tables of a sweep that is watched
WATCH_SECONDS = 10.0


class Show:
    """The table of a sweep. pruned: names of runs that cannot run. metric: as --metric gives it."""

    def __init__(self, folder: Folder, runs: list[Run], metric: str | None, pruned=()):
        self.folder, self.runs, self.metric, self.pruned = folder, runs, metric, pruned
        self._at, self._shown = -WATCH_SECONDS, None

    def watch(self, states: dict):
        """Print the table where it has changed, every WATCH_SECONDS at most. states: {name: of live runs}."""
        if time.monotonic() - self._at < WATCH_SECONDS:
            return
        self._at = time.monotonic()
        rows = self.rows(states)
        if rows != self._shown:
            self._shown = rows
            print(time.strftime("%H:%M:%S"), flush=True)
            self._print(rows, None)

    def last(self):
        """Print the table, and write it and the plot to the sweep's folder: sweep.txt and sweep.png."""
        from deepseek_jax.reports.sweep import COMPLETE
        from deepseek_jax.reports.sweep_plot import plot_sweep

        rows = self.rows({})
        with open(self.folder.path / "sweep.txt", "w") as file:
            self._print(rows, file)
        self._print(rows, None)
        if any(row.status == COMPLETE and row.value is not None for row in rows):
            path = self.folder.path / "sweep.png"
            plot_sweep(rows, self._metric(), path)
            print(f"{path.with_suffix('.txt')} and {path.name}: the table and the plot", flush=True)

    def rows(self, states: dict):
        """A reports.sweep.SweepRun for each run."""
        # Here, because it imports jax, which a mistake should not wait for
        from deepseek_jax.reports.sweep import SweepRun, last_value

        metric, complete = self._metric(), self.folder.complete()
        return [
            SweepRun(
                run.overrides,
                self._status(run, states.get(run.name), complete),
                last_value(self._workdir(run), metric),
            )
            for run in self.runs
        ]

    def _status(self, run, state, complete):
        from deepseek_jax.reports.sweep import COMPLETE, progress

        if state == RUNNING:
            return " at ".join(filter(None, ("running", progress(self._workdir(run)))))
        if state == WAITING:
            return "waiting"
        if complete.get(run.name) == run.config:
            return COMPLETE
        if run.name in self.pruned:
            return "pruned"
        if run.name not in self.folder.jobs():
            return "not started"
        status = self.folder.status(run.name)
        if status == STOPPED:
            return "stopped"
        return "ended" if status is None else f"failed ({status})"

    def _metric(self):
        from deepseek_jax.reports.sweep import choose_metric

        return choose_metric([self._workdir(run) for run in self.runs], self.metric)

    def _workdir(self, run) -> Path:
        return self.folder.path / run.name

    def _print(self, rows, file):
        from deepseek_jax.reports.sweep import sweep_table

        Console(width=WIDTH, file=file).print(sweep_table(rows, self._metric()))
