"""The folder of a sweep: which sweep it belongs to, its lock, and how its runs ended.

sweep.json      {"config", "sweep", "engine", "jobs": {name: {"id", "config"}}}: submitted jobs
complete.json   {name: the config that the run completed with}
NAME/           the run's work directory; NAME.log its output, NAME.status its last exit status
cancelled       exists from a cancel until the sweep is started again
"""

import json
from collections.abc import Callable
from pathlib import Path

from deepseek_jax.files import read_object, write_whole
from deepseek_jax.recipes.owner import names_in, owned
from launch.engines import Job
from launch.sweeps.runs import Run

SWEEP, COMPLETE = "sweep.json", "complete.json"


class Folder:
    """The folder of one sweep.

    Attributes:
        identity: {"config": FILE:ARG, "sweep": FILE}; every sweep has a different one.
        cancelled: A file that exists once the sweep is cancelled.
    """

    def __init__(self, path: Path, identity: dict):
        self.path, self.identity = path, identity
        self.cancelled = path / "cancelled"

    def check(self):
        """Raise ValueError if the folder belongs to another sweep, or to none and has files."""
        if not (self.path / SWEEP).exists():
            if names_in(self.path):
                raise ValueError(
                    f"--workdir={self.path} is not empty and has no {SWEEP}: it is not a sweep's folder, and "
                    "is left as it is; give a new or an empty --workdir"
                )
            return
        record = self._record()
        for name, value in self.identity.items():
            if record.get(name) != value:
                raise ValueError(
                    f"{self.path} belongs to another sweep, and is left as it is: --{name} is "
                    f"{record.get(name)} there, and {value} here; give another --workdir"
                )

    def claimed(self, wait: Callable):
        """Return a context in which no other process starts runs here.

        Args:
            wait: wait() is called until the other process ends.
        """
        return owned(self.path, lambda owner: wait())

    def record_start(self, engine: str):
        """Record the sweep and its engine, and forget a cancel.

        Raises:
            ValueError: See `check`; or another engine has jobs that may live.
        """
        self.check()
        if any(self.status(name) is None for name in self.jobs()):
            self.check_engine(engine)
        self.cancelled.unlink(missing_ok=True)
        self._write(SWEEP, self._record() | self.identity | {"engine": engine})

    def check_engine(self, engine: str):
        """Raise ValueError if there is no sweep here, or if its jobs are on another engine.

        Only that engine can say whether they live.
        """
        if not (self.path / SWEEP).exists():
            raise ValueError(
                f"there is no sweep in {self.path}; set --workdir to the folder that a sweep printed"
            )
        recorded_engine = self._record()["engine"]
        if recorded_engine != engine:
            raise ValueError(
                f"the runs in {self.path} are on another engine: give --engine={recorded_engine}, or stop "
                "them with --cancel there first"
            )

    def jobs(self):
        """Return {name: {"id", "config"}} of the jobs that were submitted and are not complete."""
        return self._record().get("jobs", {})

    def job(self, name: str, arguments: list[str]):
        """Return the Job of a run."""
        return Job(name, arguments, self.log(name), self._status_file(name), self.cancelled)

    def submitted(self, runs: list[Run], ids: list[str]):
        """Record the ids of jobs."""
        new_jobs = {
            run.name: {"id": i, "config": run.record} for run, i in zip(runs, ids, strict=True)
        }
        self._write(SWEEP, self._record() | {"jobs": self.jobs() | new_jobs})

    def forget_status(self, name: str):
        """Remove a run's last exit status, before the run starts again."""
        self._status_file(name).unlink(missing_ok=True)

    def status(self, name: str):
        """Return the exit status that a run wrote, negative for a signal; None without one."""
        path = self._status_file(name)
        return int(path.read_text()) if path.exists() else None

    def ended(self, name: str, status: int | None):
        """Record how a run ended. A complete run is no longer a job."""
        if status is not None:
            self._write(self._status_file(name).name, status)
        if status == 0:
            jobs = self.jobs()
            self._write(COMPLETE, self.complete() | {name: jobs.pop(name)["config"]})
            self._write(SWEEP, self._record() | {"jobs": jobs})

    def complete(self):
        """Return {name: config} of the complete runs."""
        path = self.path / COMPLETE
        return read_object(path) if path.exists() else {}

    def log(self, name: str):
        """Return the path of a run's output."""
        return self.path / f"{name}.log"

    def _status_file(self, name):
        return self.path / f"{name}.status"

    def _record(self):
        path = self.path / SWEEP
        return read_object(path) if path.exists() else {}

    def _write(self, name, content):
        write_whole(self.path / name, json.dumps(content, indent=1))
