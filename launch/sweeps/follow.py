"""Start the runs of a sweep that are not complete, and follow them to their ends.

Tests: tests/launch/sweeps/test_show.py, tests/launch/sweeps/test_folder.py.
"""

import time
from collections.abc import Callable

from launch.engines import RUNNING, STOPPED, WAITING
from launch.sweeps.folder import Folder
from launch.sweeps.runs import Run
from launch.sweeps.sort import sort_runs

# Seconds between two looks at a sweep that another process follows
WAIT_SECONDS = 1.0


class Sweep:
    """A sweep on an engine: it starts runs and follows them.

    Attributes:
        job_of: job_of(run) returns the run's Job.
        show: A sweeps.show.Show.
        watch: Whether `show` prints the table as the runs go.
    """

    def __init__(self, folder: Folder, engine, job_of: Callable, show, watch: bool = False):
        self.folder, self.engine, self.job_of, self.show = folder, engine, job_of, show
        self.watch = watch
        # The time when it began to wait for another process
        self.waits_since: float | None = None
        # {name: id}, {name: time when it was first missing}, {name: exit status, None without one}
        self.live: dict[str, str] = {}
        self.missing: dict[str, float] = {}
        self.statuses: dict[str, int | None] = {}

    def run(self, runs: list[Run], max_jobs: int | None, only_failed: bool, should_stop: Callable):
        """Take over live runs, start the runs that should start, and follow all to their ends.

        It waits while another process follows the sweep.

        Args:
            max_jobs: Runs at a time; None for the engine's number.
            only_failed: Start only runs that failed.
            should_stop: should_stop() returns True once this process is asked to stop.

        Returns:
            {name: exit status}: 0 for a complete run, None for a run that wrote no exit status. A
            run that was not started is missing.

        Raises:
            ValueError: See Folder and sort_runs.
        """
        with self.folder.claimed(lambda: self._wait(should_stop)):
            self._leave_if_cancelled(should_stop)
            self.folder.record_start(self.engine.name)
            plan = sort_runs(self.folder, runs, self.engine, only_failed)
            for run in plan.complete:
                print(f"{run.name}: complete, not run again", flush=True)
            for name in plan.live:
                print(f"{name}: is under way, and is taken over", flush=True)
            self.statuses = {run.name: 0 for run in plan.complete}
            is_cancelled = self.folder.cancelled.exists
            max_live = max_jobs or self.engine.max_jobs or len(runs)
            self._follow(plan, max_live, lambda: should_stop() or is_cancelled())
        return self.statuses

    def _wait(self, should_stop):
        if self.waits_since is None:
            self.waits_since = time.time()
            print(f"another process follows this sweep in {self.folder.path}: waiting", flush=True)
        self._leave_if_cancelled(should_stop)
        if self.watch:
            names_by_id = {job["id"]: name for name, job in self.folder.jobs().items()}
            self.show.watch(
                {names_by_id[i]: s for i, s in self.engine.state(list(names_by_id)).items()}
            )
        time.sleep(WAIT_SECONDS)

    def _leave_if_cancelled(self, should_stop):
        """Exit if this process was asked to stop, or if the sweep was cancelled while it waited."""
        cancel_file, since = self.folder.cancelled, self.waits_since
        # The other process is ending because of an older cancel, and this one was started after
        # that
        is_cancelled = (
            since is not None and cancel_file.exists() and cancel_file.stat().st_mtime > since
        )
        if should_stop() or is_cancelled:
            raise SystemExit(STOPPED)

    def _follow(self, plan, max_live, should_stop):
        """Start and follow runs, `max_live` at a time.

        Once should_stop() is true, it starts no more runs. If the engine's jobs survive, it leaves
        them, and they go on by themselves. Otherwise it asks the live runs to stop, and follows
        them to their ends.
        """
        self.live, self.missing = dict(plan.live), {}
        waiting_runs, has_signalled = list(plan.start), False
        while self.live or (waiting_runs and not should_stop()):
            if should_stop() and self.engine.survives:
                outcome = "save and end" if self.folder.cancelled.exists() else "go on"
                print(f"the runs {outcome}; start the sweep again to follow them", flush=True)
                break
            # Only once: a second signal would make a run exit without saving
            if should_stop() and not has_signalled:
                has_signalled = True
                self.engine.cancel(list(self.live.values()))
            count = (
                len(waiting_runs) if self.engine.takes_all else max(0, max_live - len(self.live))
            )
            if waiting_runs and count and not should_stop():
                self._start(waiting_runs[:count])
                waiting_runs = waiting_runs[count:]
            states = self._look()
            if self.watch:
                self.show.watch(states)
            time.sleep(self.engine.poll_seconds)

    def _start(self, runs):
        for run in runs:
            self.folder.forget_status(run.name)
        ids = self.engine.submit([self.job_of(run) for run in runs])
        self.folder.submitted(runs, ids)
        for run, identity in zip(runs, ids, strict=True):
            self.live[run.name] = identity
            output_text = self.engine.output.format(id=identity, log=self.folder.log(run.name))
            print(f"{run.name}: started; {output_text}", flush=True)

    def _look(self):
        """Record the runs that have ended.

        Returns:
            {name: WAITING or RUNNING} of the others.
        """
        live_states = {}
        states = self.engine.state(list(self.live.values()))
        for name, identity in list(self.live.items()):
            state = states.get(identity)
            if state in (WAITING, RUNNING):
                self.missing.pop(name, None)
                live_states[name] = state
                continue
            status = self.folder.status(name) if state is None else state
            since = self.missing.setdefault(name, time.monotonic())
            if status is not None or time.monotonic() - since >= self.engine.settle_seconds:
                del self.live[name]
                self._end(name, status)
        return live_states

    def _end(self, name, status):
        self.statuses[name] = status
        self.folder.ended(name, status)
        if status == 0:
            print(f"{name}: complete", flush=True)
            return
        ending = "ended without an exit status" if status is None else f"exit status {status}"
        print(f"{name}: {ending}; see {self.folder.log(name)}", flush=True)


def cancel(folder: Folder, engine, should_stop: Callable):
    """Ask all live runs to save and end, and wait until they have.

    A process that follows the sweep ends too: it sees the file `cancelled`.

    Returns:
        The names of these runs.

    Raises:
        ValueError: There is no sweep, or its runs are on another engine.
    """
    folder.check_engine(engine.name)
    folder.cancelled.touch()
    names_by_id = {job["id"]: name for name, job in folder.jobs().items()}
    live_ids = [
        i for i, state in engine.state(list(names_by_id)).items() if state in (WAITING, RUNNING)
    ]
    if live_ids:
        engine.cancel(live_ids)
    while not should_stop() and any(
        state in (WAITING, RUNNING) for state in engine.state(live_ids).values()
    ):
        time.sleep(engine.poll_seconds)
    for name in folder.jobs():
        # The job was taken out of the queue, or nothing could write how it ended
        if folder.status(name) is None and not should_stop():
            folder.ended(name, STOPPED)
    return [names_by_id[i] for i in live_ids]
