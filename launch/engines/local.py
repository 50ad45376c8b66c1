"""The local engine: each run is a process of this machine, in a separate session."""

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

from deepseek_jax.programs import program
from launch.engines import RUNNING, Job

TASK = Path(__file__).with_name("task.py")
TRAIN = program("train")


class Local:
    """The engine of --engine=local. An id is PID@HOST.

    A job holds a lock on the file FOLDER/local/PID@HOST as long as it lives.
    """

    name, max_jobs = "local", 1
    takes_all = survives = False
    poll_seconds, settle_seconds = 0.1, 0.0
    output = "its output is in {log}"

    def __init__(self, folder: Path):
        # submit creates it
        self.folder = folder / "local"
        self._processes: list[subprocess.Popen] = []

    def check_installed(self):
        """Do nothing: the local engine needs only Python."""

    def describe(self, jobs: list[Job]):
        """Return the command of each run, as a user could type it."""
        return "\n".join(shlex.join(["python", str(TRAIN), *job.arguments]) for job in jobs)

    def submit(self, jobs: list[Job]):
        """Start a process for each job, and return their ids."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return [self._start(job) for job in jobs]

    def _start(self, job):
        lock_path = self.folder / "starting"
        with open(lock_path, "w") as lock_file, open(job.log, "a") as log:
            # The job inherits the lock, and the lock ends with the process, in whatever way. So
            # another process that gets the same pid is not mistaken for the job
            fcntl.flock(lock_file, fcntl.LOCK_EX)
            process = subprocess.Popen(
                command(job),
                # In a separate session, so that Ctrl-C reaches the job once, through this process
                start_new_session=True,
                pass_fds=[lock_file.fileno()],
                # No streams of this process: a reader of its output would wait for the job after
                # this process has ended
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        # `state` polls these, so that a process is reaped when it ends
        self._processes.append(process)
        identity = f"{process.pid}@{socket.gethostname()}"
        os.replace(lock_path, self.folder / identity)
        return identity

    def state(self, ids: list[str]):
        """Return {id: RUNNING} for the jobs that live.

        Raises:
            ValueError: A job is on another machine.
        """
        for process in self._processes:
            process.poll()
        return {identity: RUNNING for identity in ids if self._lives(identity)}

    def _lives(self, identity):
        host = identity.partition("@")[2]
        if host != socket.gethostname():
            raise ValueError(
                f"a run of this sweep was started on {host}, and cannot be seen from here; go on there"
            )
        path = self.folder / identity
        if not path.exists():
            return False
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        path.unlink()
        return False

    def cancel(self, ids: list[str]):
        """Send SIGTERM to the jobs that live."""
        for identity in self.state(ids):
            os.kill(int(identity.partition("@")[0]), signal.SIGTERM)


def command(job: Job, *options: str):
    """Return the command line of a job, for a machine that has this project at the same path.

    Args:
        options: Options of task.py, such as --slurm.
    """
    file_flags = [f"--{name}={getattr(job, name)}" for name in ("log", "status", "cancelled")]
    train_command = [sys.executable, str(TRAIN), *job.arguments]
    return [sys.executable, str(TASK), *file_flags, *options, *train_command]
