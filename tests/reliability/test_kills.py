"""Runs that are killed at any moment, again and again, and end like one that nothing interrupted."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import wait_for_orphans
from tests.recipes.cases import CASES
from tests.reliability.outcome import assert_equal

ROOT = Path(__file__).resolve().parents[2]
KILLS = 20
# Half of the kills come at once, half so many seconds after their moment at most
LATER_SECONDS = 0.3


def start(name, workdir, moment=()):
    """Start a case as a process on one device: -> (exit status, output). Nothing that it started may stay."""
    command = [sys.executable, "-m", "tests.reliability.killed", name, str(workdir), *moment]
    devices = "--xla_force_host_platform_device_count=1"
    env = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}"}
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **streams)
    output, _ = process.communicate(timeout=600)
    wait_for_orphans(process.pid)
    return process.returncode, output


def moments(output):
    """{kind: how many} of a run to its end."""
    return json.loads(output.splitlines()[-1])


def killed_again_and_again(name, folder, kills, seed=0):
    """Kill runs of a case, resume each until it ends, and compare them with one that nothing interrupted:
    -> {kind of moment: kills}.
    """
    rng, done = random.Random(f"{name} {seed}"), collections.Counter()
    status, output = start(name, folder / "whole")
    assert status == 0, output
    there = moments(output)
    while done.total() < kills:
        workdir = folder / f"killed_{done.total()}"
        while True:
            moment = ()
            if done.total() < kills:
                # The kind with the fewest kills so far
                kind = min(sorted(there), key=lambda kind: (done[kind], rng.random()))
                later = rng.choice([0, rng.uniform(0, LATER_SECONDS)])
                moment = [f"{kind}:{rng.randint(1, there[kind])}:{later:.3f}"]
            status, output = start(name, workdir, moment)
            if status != -signal.SIGKILL:
                break
            done[kind] += 1
        assert status == 0, (moment, output)
        assert_equal(workdir, folder / "whole")
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(name, tmp_path):
    """Oracle: every file, number, text and parameter of the run that nothing interrupted."""
    killed_again_and_again(name, tmp_path, KILLS)


@pytest.mark.parametrize("name", ["pretrain", "grpo"])
def test_a_run_killed_twice_ends_like_one_that_was_not(name, tmp_path):
    """Oracle: every file, number, text and parameter of the run that nothing interrupted."""
    killed_again_and_again(name, tmp_path, 2)
