"""Run a command as an engine's job: its output goes to a log, and its exit status to a file.

    python launch/engines/task.py --log=FILE --status=FILE --cancelled=FILE [--slurm] COMMAND ...

A command that was preempted starts again: it was asked to stop and has saved, with exit status 75.
Here it starts again at once; with --slurm it starts when Slurm has nodes for it. After a cancel it
does not start again: then the file of --cancelled is there, or SIGTERM came to this process, which
passes it on once. This file imports only the standard library.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

# As in training.run
STOPPED = 75
# From <linux/prctl.h>
PR_SET_PDEATHSIG = 1
# The command has saved, or SIGTERM ended it: before it could react, or as a second signal
PREEMPTED = STOPPED, -signal.SIGTERM


def main():
    """Run the command, and again after each preemption; then exit with a status."""
    arguments = parsed()
    rank = int(os.environ.get("SLURM_PROCID", 0)) if arguments.slurm else 0
    task = Task(arguments, rank)
    signal.signal(signal.SIGTERM, task.stop)
    while True:
        # A cancel may come before Slurm has started this process
        status = STOPPED if arguments.cancelled.exists() else task.run()
        if status not in PREEMPTED or task.stopped or arguments.cancelled.exists():
            sys.exit(task.end(status))
        if arguments.slurm:
            sys.exit(task.requeue(status))


def _end_with(parent):
    """Return a function for a command's process to call first: the process then ends with the task.

    It is killed when the task ends, in whatever way. Otherwise it would be at work in its directory
    while the job starts again. This works only on Linux.

    Args:
        parent: The pid of the task.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def end_with_parent():
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return end_with_parent


def parsed():
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser()
    for name in ("log", "status", "cancelled"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--slurm", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser.parse_args()


class Task:
    """The command of a job, in the process with this rank."""

    def __init__(self, values, rank: int):
        self.values, self.rank = values, rank
        self.process: subprocess.Popen | None = None
        self.stopped = False

    def run(self):
        """Run the command to its end.

        Returns:
            The command's exit status; a negative number for a signal.
        """
        log = self.values.log
        # Each process of a job has its own log, and a command that starts again adds to it
        log_path = log if self.rank == 0 else log.with_name(f"{log.stem}.{self.rank}{log.suffix}")
        with open(log_path, "a") as file:
            self.process = subprocess.Popen(
                self.values.command,
                stdout=file,
                stderr=file,
                preexec_fn=_end_with(os.getpid()),
            )
            return self.process.wait()

    def stop(self, number, frame):
        """Pass SIGTERM on, once: a second one would end the command before it has saved."""
        # Slurm signals every process of a job, so the command has the signal already
        if self.values.slurm or self.stopped:
            return
        self.stopped = True
        if self.process is not None:
            self.process.send_signal(number)

    def requeue(self, status):
        """Have Slurm start the job again.

        Returns:
            The exit status of this process.
        """
        # One process asks Slurm for all. The others end with 0: else Slurm would kill the ones that
        # still save
        if self.rank > 0:
            return 0
        array_id, index = map(os.environ.get, ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"))
        job = f"{array_id}_{index}" if array_id else os.environ["SLURM_JOB_ID"]
        query = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
        state = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        # A job that a user cancelled, or that Slurm itself queues again, is no longer running
        if state != "RUNNING":
            return self.end(status)
        subprocess.run(["scontrol", "requeue", job], check=True)
        return 0

    def end(self, status):
        """Write the command's exit status to its file.

        Returns:
            The exit status of this process.
        """
        path, has_failed = self.values.status, status not in (0, *PREEMPTED)
        # If any process fails, the job has failed, whichever process writes first
        if has_failed or (self.rank == 0 and not path.exists()):
            new_file = path.with_name(f"{path.name}.{self.rank}.tmp")
            new_file.write_text(str(status))
            os.replace(new_file, path)
        return status if has_failed and status > 0 else int(has_failed)


if __name__ == "__main__":
    main()
