"""Where runs are executed: on this machine, by Slurm, or by GKE. An engine submits, says the state, cancels.

    check_installed(): raises ValueError, saying what to do, where submit needs what is not on this machine
    shown(jobs) -> the text of what submit(jobs) starts, which needs nothing
    submit(jobs) -> a list of ids, strings that a later process can use
    state(ids) -> {id: WAITING, RUNNING, or an exit status}. An id that is missing has ended; task.py has then
        left its exit status in the job's file, unless it was killed
    cancel(ids): ask the jobs to save and to end

name: as --engine gives it. max_jobs: runs at a time, None for all. takes_all: it queues by itself, so it gets
all jobs at once. survives: its jobs go on when the sweep is interrupted. poll_seconds: between two questions
for the state. settle_seconds: how long the file of an exit status may take to reach this machine. output:
where a job's output is, with {id} and {log}.
"""

from pathlib import Path
from typing import NamedTuple

WAITING, RUNNING = "waiting", "running"
# Exit status of a run that was asked to stop and has saved, as in training.loop
STOPPED = 75


class Job(NamedTuple):
    """One run for an engine. arguments: of launch/train.py. log: takes its output. status: the file that
    takes its exit status. cancelled: a file that is there once nothing is to be started again.
    """

    name: str
    arguments: list[str]
    log: Path
    status: Path
    cancelled: Path
