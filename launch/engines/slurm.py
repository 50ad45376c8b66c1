"""The engine for Slurm: the runs of a sweep are one job array."""

import getpass
import shlex
import shutil
import subprocess
from pathlib import Path

from absl import flags

from launch.engines import RUNNING, WAITING, Job
from launch.engines.local import command

# The commands that this engine calls
COMMANDS = "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo"
# How many seconds before its time limit a run is asked to save
SAVE_SECONDS = 120

flags.disclaim_key_flags()


def define_flags():
    """Define the flags of the resources that a run asks Slurm for."""
    flags.DEFINE_integer("nodes", 1, "Slurm: the nodes of a run.", lower_bound=1)
    meaning = (
        "Slurm: the GPUs of a node, a process for each; 0 for one process a node, without GPUs."
    )
    flags.DEFINE_integer("devices_per_node", 0, meaning, lower_bound=0)
    flags.DEFINE_string("partition", None, "Slurm: the partition; default the cluster's.")
    meaning = "Slurm: the time limit of a run, which saves before it and is then queued again."
    flags.DEFINE_integer("minutes", 24 * 60, meaning, lower_bound=1)


class Slurm:
    """The engine of --engine=slurm. An id is Slurm's: JOB_INDEX for one job of an array."""

    name = "slurm"
    takes_all = survives = True
    # Slurm's controller answers the whole cluster, so it is not polled often. Network file systems
    # show a new file late
    poll_seconds, settle_seconds = 5.0, 60.0
    output = "job {id}; its output is in {log}"

    def __init__(self, folder: Path, max_jobs: int | None):
        self.folder, self.max_jobs = folder / "slurm", max_jobs
        self._last: dict[str, str] = {}

    def check_installed(self):
        """Raise ValueError, with what to do, if Slurm's commands are missing or get no answer."""
        missing_names = [name for name in COMMANDS if shutil.which(name) is None]
        if missing_names:
            raise ValueError(
                f"--engine=slurm needs Slurm's commands, and this machine has no {', '.join(missing_names)}; "
                "start the sweep on a login node, or use --engine=local"
            )
        result = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True)
        if result.returncode:
            raise ValueError(f"--engine=slurm: Slurm does not answer: {_reason(result.stderr)}")

    def submit(self, jobs: list[Job]):
        """Submit the jobs as an array, and return their ids.

        Raises:
            ValueError: Slurm refuses the jobs.
        """
        # Slurm writes the output there, and does not create the folder
        self.folder.mkdir(parents=True, exist_ok=True)
        result = subprocess.run(
            ["sbatch", "--parsable"], input=self.describe(jobs), capture_output=True, text=True
        )
        if result.returncode:
            raise ValueError(f"--engine=slurm: Slurm refuses the jobs: {_reason(result.stderr)}")
        # ID, or ID;CLUSTER
        identity = result.stdout.strip().partition(";")[0]
        return [f"{identity}_{index}" for index in range(len(jobs))]

    def describe(self, jobs: list[Job]):
        """Return the script for sbatch."""
        # Without the option, the other processes wait for a process that has failed
        srun = ["srun", "--kill-on-bad-exit=1"]
        cases = [
            f"{index}) {shlex.join([*srun, *command(job, '--slurm')])} ;;"
            for index, job in enumerate(jobs)
        ]
        options = (f"#SBATCH --{option}" for option in self._options(len(jobs)))
        return "\n".join(
            ["#!/bin/bash", *options, 'case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]
        )

    def _options(self, count):
        """Return the options of sbatch for `count` jobs."""
        flag_values = flags.FLAGS
        options = [
            "job-name=sweep",
            f"array=0-{count - 1}%{min(self.max_jobs or count, count)}",
            f"nodes={flag_values.nodes}",
            f"ntasks-per-node={max(1, flag_values.devices_per_node)}",
            f"time={flag_values.minutes}",
            # The signal goes to the processes, not to this script
            f"signal=TERM@{min(SAVE_SECONDS, 15 * flag_values.minutes)}",
            "requeue",
            "open-mode=append",
            f"output={shlex.quote(str(self.folder / '%A_%a.out'))}",
        ]
        if flag_values.devices_per_node:
            options.append(f"gpus-per-node={flag_values.devices_per_node}")
        if flag_values.partition is not None:
            options.append(f"partition={shlex.quote(flag_values.partition)}")
        return options

    def state(self, ids: list[str]):
        """Return {id: WAITING or RUNNING} for the jobs that Slurm lists."""
        result = subprocess.run(
            ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i %T"],
            capture_output=True,
            text=True,
        )
        # A controller that is restarting does not answer: its last answer still holds
        if result.returncode == 0:
            states = dict(line.split() for line in result.stdout.splitlines())
            self._last = {i: WAITING if s == "PENDING" else RUNNING for i, s in states.items()}
        return {identity: self._last[identity] for identity in ids if identity in self._last}

    def cancel(self, ids: list[str]):
        """Take waiting jobs out of the queue, and send SIGTERM to running ones, which save."""
        states = self.state(ids)
        waiting_ids = [identity for identity, state in states.items() if state == WAITING]
        # The step, not the job: Slurm repeats the signal for a job of an array, and a second one
        # ends a run
        running_steps = [f"{identity}.0" for identity in states if identity not in waiting_ids]
        for options, targets in ([], waiting_ids), (["--signal=TERM"], running_steps):
            if targets:
                # scancel complains about jobs that have just ended, so its output is dropped
                subprocess.run(["scancel", *options, *targets], capture_output=True)


def _reason(error):
    """Return the last nonempty line of a command's output."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"
