"""Calls in worker processes that may die: their results, and the time they take."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepseek_jax.rewards.workers import WorkerPool
from tests.processes import wait_for_orphans

ROOT = Path(__file__).resolve().parents[2]

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


UNGUARDED = """
import sys
from concurrent.futures import ThreadPoolExecutor

with open("ran", "a") as file:
    file.write("once ")
import deepseek_jax as ds

def score(texts):
    with ds.Rewards({"own.py:brief": 1.0}) as rewards:
        return [rewards.score([{"question": "1?"}], [text]).total[0].item() for text in texts]

# A worker that ends is replaced
with ThreadPoolExecutor(2) as threads:
    scores = [*threads.map(score, [["short", "ends", "too long"], ["too long", "short"]])]
main = sys.modules["__main__"]
print(scores, open("ran").read(), main.__file__, main.__spec__ and main.__spec__.name)
"""
OWN = """
import os

def brief(completion, example):
    if completion == "ends":
        os._exit(1)
    return float(len(completion) < 6)
"""


def script(folder, text, *command):
    """What a Python script prints in a folder with own.py."""
    (folder / "script.py").write_text(text)
    (folder / "own.py").write_text(OWN)
    done = subprocess.run(
        [sys.executable, *command],
        input=text,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "command, main",
    [
        (["script.py"], "{folder}/script.py None"),
        (["-m", "script"], "{folder}/script.py script"),
        (["-"], "<stdin> None"),
    ],
    ids=["a file", "a module", "standard input"],
)
def test_workers_do_not_run_the_script_that_starts_them(command, main, tmp_path):
    """Oracle: by hand: the script notes each time that it runs, and has no main block; its scores; the main
    module has its file again afterwards.
    """
    said = script(tmp_path, UNGUARDED, *command)
    scores = "[[1.0, nan, 0.0], [0.0, 1.0]]"
    assert said == f"{scores} once  {main.format(folder=tmp_path)}\n"
