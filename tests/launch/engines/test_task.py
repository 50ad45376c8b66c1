"""launch/engines/task.py as an engine starts it, with small commands and a Slurm that only takes notes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import wait_for_orphans

TASK = Path(__file__).resolve().parents[3] / "launch" / "engines" / "task.py"
# Preempted the first time, complete the second
TWICE = """
import pathlib, sys
path = pathlib.Path("times")
times = int(path.read_text()) + 1 if path.exists() else 1
path.write_text(str(times))
print("time", times)
sys.exit(75 if times == 1 else 0)
"""
# Saves at SIGTERM; a second SIGTERM would end it at once
SAVES = """
import pathlib, signal, sys, time
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(0.5)
    pathlib.Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("ready").touch()
time.sleep(60)
"""
NOTE = '#!/bin/sh\necho "$(basename $0) $*" >> notes\n'


def start(folder, program, *options, session=False, **environment):
    files = [f"--{name}={folder / name}" for name in ("status", "cancelled")]
    command = [sys.executable, str(TASK), f"--log={folder}/run.log", *files, *options]
    return subprocess.Popen(
        [*command, sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | environment,
        start_new_session=session,
    )


def wait_for(path):
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.05)


def test_a_command_ends_with_a_task_that_is_killed(tmp_path):
    """Oracle: the processes of the task's session, and the file that the command would leave."""
    task = start(tmp_path, SAVES, session=True)
    wait_for(tmp_path / "ready")
    task.kill()
    assert task.wait() == -signal.SIGKILL
    wait_for_orphans(task.pid)
    assert not (tmp_path / "saved").exists()


@pytest.fixture
def slurm(tmp_path):
    """The environment of a job whose commands of Slurm write down how they were called."""
    (tmp_path / "scontrol").write_text(NOTE)
    (tmp_path / "squeue").write_text(NOTE + "cat state\n")
    (tmp_path / "state").write_text("RUNNING\n")
    for name in ("scontrol", "squeue"):
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return dict(PATH=path, SLURM_JOB_ID="9", SLURM_ARRAY_JOB_ID="8", SLURM_ARRAY_TASK_ID="3")


@pytest.mark.parametrize("status", [0, 3])
def test_a_command_leaves_its_exit_status_and_its_output(tmp_path, status):
    """Oracle: by hand."""
    process = start(tmp_path, f"import sys; print('words'); sys.exit({status})")
    assert process.wait(timeout=30) == status
    assert (tmp_path / "status").read_text() == str(status)
    assert (tmp_path / "run.log").read_text() == "words\n"


def test_a_killed_command_leaves_the_signal(tmp_path):
    """Oracle: subprocess's convention, and an exit status of the task that is not 0."""
    process = start(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert process.wait(timeout=30) == 1 and (tmp_path / "status").read_text() == "-9"


def test_a_preempted_command_starts_again_and_adds_to_its_log(tmp_path):
    """Oracle: by hand: the second time it is complete."""
    assert start(tmp_path, TWICE).wait(timeout=30) == 0
    assert (tmp_path / "status").read_text() == "0"
    assert (tmp_path / "run.log").read_text() == "time 1\ntime 2\n"


def test_after_a_cancel_nothing_starts(tmp_path):
    """Oracle: the count that the command would have left."""
    (tmp_path / "cancelled").touch()
    assert start(tmp_path, TWICE).wait(timeout=30) == 0
    assert (tmp_path / "status").read_text() == "75" and not (tmp_path / "times").exists()


def test_sigterm_is_passed_on_once_and_the_command_does_not_start_again(tmp_path):
    """Oracle: the file that the command leaves if a second signal does not end it."""
    process = start(tmp_path, SAVES)
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert (tmp_path / "saved").exists() and (tmp_path / "status").read_text() == "75"


def test_under_slurm_the_first_process_has_the_job_queued_again(tmp_path, slurm):
    """Oracle: Slurm's command by hand; no exit status, for the job has not ended; a log for each process."""
    for rank in "10":
        (tmp_path / "times").unlink(missing_ok=True)
        process = start(tmp_path, TWICE, "--slurm", SLURM_PROCID=rank, **slurm)
        assert process.wait(timeout=30) == 0 and not (tmp_path / "status").exists()
    notes = (tmp_path / "notes").read_text().splitlines()
    assert notes == ["squeue --noheader --jobs=8_3 --format=%T", "scontrol requeue 8_3"]
    assert (tmp_path / "run.1.log").read_text() == (tmp_path / "run.log").read_text() == "time 1\n"


def test_a_job_that_was_cancelled_in_slurm_is_not_queued_again(tmp_path, slurm):
    """Oracle: squeue's state of a job after scancel, and no call of scontrol."""
    (tmp_path / "state").write_text("COMPLETING\n")
    process = start(tmp_path, TWICE, "--slurm", SLURM_PROCID="0", **slurm)
    assert process.wait(timeout=30) == 0 and (tmp_path / "status").read_text() == "75"
    assert "scontrol" not in (tmp_path / "notes").read_text()


@pytest.mark.parametrize("order", ["01", "10"])
def test_a_failure_of_one_process_is_that_of_the_job(tmp_path, slurm, order):
    """Oracle: the exit status of the one that failed, whichever ends first."""
    for rank in order:
        program = f"import sys; sys.exit({'4' if rank == '1' else '0'})"
        start(tmp_path, program, "--slurm", SLURM_PROCID=rank, **slurm).wait(timeout=30)
    assert (tmp_path / "status").read_text() == "4"
