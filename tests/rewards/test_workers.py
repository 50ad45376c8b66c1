"""Calls in worker processes that may die: their results, and the time they take."""

import math
import os
import signal
import subprocess
import sys
import time

from deepseek_jax.rewards.workers import WorkerPool
from tests.processes import wait_for_orphans

KILLED = """
import os, signal, threading, time
from deepseek_jax.rewards.workers import WorkerPool
if __name__ == "__main__":
    workers = WorkerPool(time.sleep, int, num_workers=2, wall_limit_seconds=600.0)
    workers.run({"starts": (0,)})
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
    workers.run({"works": (600,)})
"""


def pool(work, wall_limit_seconds=10.0):
    return WorkerPool(work, int, num_workers=1, wall_limit_seconds=wall_limit_seconds)


def test_results_come_back_under_their_keys():
    """Oracle: math.sqrt here."""
    with pool(math.sqrt) as workers:
        assert workers.run({x: (x,) for x in range(20)}) == {x: math.sqrt(x) for x in range(20)}
        assert workers.run({}) == {}


def test_what_a_call_raises_is_its_result():
    """Oracle: math.sqrt(-1) raises ValueError here too."""
    with pool(math.sqrt) as workers:
        results = workers.run({"bad": (-1,), "good": (4,)})
    assert isinstance(results["bad"], ValueError) and results["good"] == 2.0


def test_a_call_that_hangs_ends_at_the_wall_limit_and_loses_no_other():
    """Oracle: by hand: no result of the call, which would have None after a minute."""
    with pool(time.sleep, wall_limit_seconds=1.0) as workers:
        assert workers.run({"hangs": (60,), "a": (0,), "b": (0,)}) == {"a": None, "b": None}


def test_calls_end_at_the_limit_of_all_together():
    """Oracle: by hand: 2 s leave no time for five calls of 1 s; the first is done by then."""
    with pool(time.sleep) as workers:
        workers.run({"start": (0,)})
        results = workers.run({"first": (0,)} | {i: (1,) for i in range(5)}, limit_seconds=2.0)
    assert "first" in results and 1 <= len(results) < 4


def test_a_call_that_ends_its_process_loses_no_other():
    """Oracle: by hand; the TypeError of os._exit("x") is the one result that a call can give."""
    with pool(os._exit) as workers:
        assert workers.run({"dies": (3,), "wrong": ("x",)}).keys() == {"wrong"}
        assert isinstance(workers.run({"wrong": ("x",)})["wrong"], TypeError)


def test_a_start_that_fails_gives_no_results_and_does_not_hang():
    """Oracle: by hand; int("x") raises in every worker."""
    with WorkerPool(abs, int, "x", num_workers=1, wall_limit_seconds=5.0) as workers:
        assert workers.run({"a": (1,)}) == {}


def test_no_worker_outlives_a_run_that_was_killed(tmp_path):
    """Oracle: the processes of the run's session, one at work and one waiting when it gets SIGKILL."""
    program = tmp_path / "run.py"
    program.write_text(KILLED)
    run = subprocess.Popen([sys.executable, program], start_new_session=True)
    assert run.wait() == -signal.SIGKILL
    wait_for_orphans(run.pid)
