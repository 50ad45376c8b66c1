"""Engines execute the runs of a sweep: on this machine, by Slurm, or by GKE.

An engine is a class with these methods:

    check_installed(): raises ValueError, with what to do, if this machine lacks what submit needs
    describe(jobs): returns the text of what submit(jobs) starts; it needs nothing on this machine
    submit(jobs): returns a list of ids, strings that a later process can use
    state(ids): returns {id: WAITING, RUNNING, or an exit status}. An id that is missing has ended;
        task.py has then written its exit status to the job's file, unless task.py was killed
    cancel(ids): asks the jobs to save and to end

It has these attributes:

    name: as --engine gives it
    max_jobs: runs at a time; None for all
    takes_all: True if it has a queue, so that it gets all jobs at once
    survives: True if its jobs go on when the sweep is interrupted
    poll_seconds: seconds between two calls of state
    settle_seconds: how long the file of an exit status may take to reach this machine
    output: where a job's output is, with {id} and {log}
"""

from pathlib import Path
from typing import NamedTuple

WAITING, RUNNING = "waiting", "running"
# Exit status of a run that was asked to stop and has saved, as in training.run
STOPPED = 75


class Job(NamedTuple):
    """One run, for an engine.

    Attributes:
        arguments: The arguments of launch/train.py.
        log: The file for the run's output.
        status: The file for its exit status.
        cancelled: A file that exists once nothing may be started again.
    """

    name: str
    arguments: list[str]
    log: Path
    status: Path
    cancelled: Path
