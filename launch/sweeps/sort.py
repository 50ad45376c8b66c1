"""What is to be done for each run of a sweep that is started, perhaps not for the first time."""

from typing import NamedTuple

from launch.engines import RUNNING, STOPPED, WAITING
from launch.sweeps.folder import Folder
from launch.sweeps.runs import Run


class Plan(NamedTuple):
    """What is to be done for each run. live: {name: id}; the others are lists of Run."""

    complete: list
    live: dict
    start: list
    left: list


def sort_runs(folder: Folder, runs: list[Run], engine, only_failed: bool):
    """The Plan of a sweep that is started, perhaps not for the first time.

    only_failed: start none but those that failed. Raises ValueError for a live run whose config has changed.
    """
    complete, jobs = folder.complete(), folder.jobs()
    pending = [run for run in runs if complete.get(run.name) != run.record]
    states = engine.state([jobs[run.name]["id"] for run in pending if run.name in jobs])
    plan = Plan([run for run in runs if run not in pending], {}, [], [])
    for run in pending:
        job = jobs.get(run.name)
        state = states.get(job["id"]) if job else None
        same = bool(job) and job["config"] == run.record
        status = state if isinstance(state, int) else folder.status(run.name)
        if state in (WAITING, RUNNING):
            if not same:
                raise ValueError(
                    f"{run.name} runs with another config; wait for it, or stop it with --cancel"
                )
            plan.live[run.name] = job["id"]
        elif same and status == 0:
            # It ended while nobody followed it
            folder.ended(run.name, 0)
            plan.complete.append(run)
        elif only_failed and (job is None or status == STOPPED):
            plan.left.append(run)
        else:
            plan.start.append(run)
    return plan
