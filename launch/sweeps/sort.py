"""What to do with each run when a sweep starts, perhaps not for the first time.

Tests: tests/launch/sweeps/test_folder.py.
"""

from typing import NamedTuple

from launch.engines import RUNNING, STOPPED, WAITING
from launch.sweeps.folder import Folder
from launch.sweeps.runs import Run


class Plan(NamedTuple):
    """Runs of a sweep, sorted by what to do with them.

    Attributes:
        complete: Runs that are complete.
        live: {name: id} of runs that are waiting or running.
        start: Runs to start.
        left_alone: Runs that stay as they are, because only failed runs are to start.
    """

    complete: list[Run]
    live: dict[str, str]
    start: list[Run]
    left_alone: list[Run]


def sort_runs(folder: Folder, runs: list[Run], engine, only_failed: bool):
    """Return the Plan of a sweep that starts, perhaps not for the first time.

    A run that completed while nobody followed it is recorded in the folder.

    Args:
        only_failed: Start only runs that failed.

    Raises:
        ValueError: The config of a live run has changed.
    """
    complete_records, jobs = folder.complete(), folder.jobs()
    pending_runs = [run for run in runs if complete_records.get(run.name) != run.record]
    states = engine.state([jobs[run.name]["id"] for run in pending_runs if run.name in jobs])
    plan = Plan([run for run in runs if run not in pending_runs], {}, [], [])
    for run in pending_runs:
        job = jobs.get(run.name)
        state = states.get(job["id"]) if job else None
        is_unchanged = bool(job) and job["config"] == run.record
        status = state if isinstance(state, int) else folder.status(run.name)
        if state in (WAITING, RUNNING):
            if not is_unchanged:
                raise ValueError(
                    f"{run.name} runs with another config; wait for it, or stop it with --cancel"
                )
            plan.live[run.name] = job["id"]
        elif is_unchanged and status == 0:
            # It completed while nobody followed it
            folder.ended(run.name, 0)
            plan.complete.append(run)
        elif only_failed and (job is None or status == STOPPED):
            plan.left_alone.append(run)
        else:
            plan.start.append(run)
    return plan
