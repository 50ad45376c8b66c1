"""Jobs of the local engine, seen by the process that started them and by another."""

import os
import signal
import time

import pytest

from launch.engines import RUNNING, local
from launch.engines.local import Local

WAITS = "import time; print('ready', flush=True); time.sleep(60)"
ENDS = "import sys; sys.exit(5)"


@pytest.fixture
def job_of(tmp_path, monkeypatch):
    """job_of(program) -> a Job that runs a Python program in the place of launch/train.py."""
    from launch.engines import Job

    def make(program):
        (tmp_path / "program.py").write_text(program)
        monkeypatch.setattr(local, "TRAIN", tmp_path / "program.py")
        files = {name: tmp_path / f"run.{name}" for name in ("log", "status", "cancelled")}
        return Job("run", [], **files)

    return make


def wait_for_start(job):
    until = time.monotonic() + 30
    while not (job.log.exists() and "ready" in job.log.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_for_end(engine, ids):
    until = time.monotonic() + 30
    while engine.state(ids):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_another_process_sees_a_job_that_lives_and_ends_it(tmp_path, job_of):
    """Oracle: a second engine on the same folder, as a sweep has that was started again; SIGTERM by hand."""
    job = job_of(WAITS)
    ids = Local(tmp_path).submit([job])
    wait_for_start(job)
    other = Local(tmp_path)
    assert other.state(ids) == {ids[0]: RUNNING}
    other.cancel(ids)
    wait_for_end(Local(tmp_path), ids)
    # Ended by the signal before it could save: it is to be started again
    assert job.status.read_text() == str(-signal.SIGTERM)


def test_a_job_that_has_ended_is_not_listed_and_leaves_its_exit_status(tmp_path, job_of):
    """Oracle: by hand."""
    job, engine = job_of(ENDS), Local(tmp_path)
    ids = engine.submit([job])
    wait_for_end(engine, ids)
    assert job.status.read_text() == "5" and Local(tmp_path).state(ids) == {}


def test_a_killed_job_is_not_listed_though_its_pid_may_be_another_process(tmp_path, job_of):
    """Oracle: our own pid, which lives, in the place of the job's."""
    engine = Local(tmp_path)
    (identity,) = engine.submit([job_of(WAITS)])
    pid, host = identity.split("@")
    os.killpg(int(pid), signal.SIGKILL)
    wait_for_end(engine, [identity])
    assert engine.state([f"{os.getpid()}@{host}"]) == {}


def test_a_job_of_another_machine_is_refused(tmp_path):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match="started on elsewhere, and cannot be seen from here"):
        Local(tmp_path).state(["1@elsewhere"])
