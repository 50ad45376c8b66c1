"""A sweep whose processes are killed, again and again: its runs end like those that nothing interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recipes.outcome import assert_equal
from tests.reliability.test_full_disk import ROOT as CONFIGS
from tests.reliability.test_full_disk import SMALL

KILLS = 20
TWO_RUNS = """
def sweep(config):
    return [{"seed": 1}, {"seed": 2}]
"""
RUNS = ("seed=1", "seed=2")
# The programs of a sweep on this machine, each the parent of the next
PROGRAMS = ("sweep.py", "task.py", "train.py")
# A kill comes so many seconds after a start: from the first import to after the last save
SECONDS = (0.5, 25.0)


def start(folder):
    """Start or resume the sweep of a folder."""
    name, *fields = SMALL.split()
    (folder / "two.py").write_text(TWO_RUNS)
    command = [sys.executable, CONFIGS.parent / "launch" / "sweep.py", f"--config={CONFIGS / name}"]
    command += [f"--sweep={folder / 'two.py'}", f"--workdir={folder / 'out'}"]
    command += [f"--config.{field}" for field in fields]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    one = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
    return subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": one}, **streams)


def living(folder):
    """{pid: its program} of the sweep's processes."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        # It has ended meanwhile
        except OSError:
            continue
        # A task's command line has its run's program too: the first counts
        names = [Path(word).name for word in words[1:2]]
        if names and names[0] in PROGRAMS and any(str(folder) in word for word in words):
            found[int(path.parent.name)] = names[0]
    return found


def start_and_kill(folder, program, seconds):
    """Start or resume a sweep and kill one of its programs so many seconds later: -> whether that came before
    the end. A program that is killed alone is a failed run to its sweep, which says so and goes on.
    """
    sweep, due, killed = start(folder), time.monotonic() + seconds, False
    while sweep.poll() is None and not killed:
        there = [pid for pid, name in living(folder).items() if name == program]
        if killed := bool(there) and time.monotonic() > due:
            os.kill(there[0], signal.SIGKILL)
        time.sleep(0.2)
    out, _ = sweep.communicate(timeout=900)
    # A kill may find a program whose work is done
    allowed = (0, -signal.SIGKILL if program == "sweep.py" else 1) if killed else (0,)
    assert sweep.returncode in allowed, out
    return sweep.returncode != 0


def ended(folder):
    """Start or resume a sweep, to its end."""
    folder.mkdir(exist_ok=True)
    sweep = start(folder)
    out, _ = sweep.communicate(timeout=900)
    assert sweep.returncode == 0, out
    assert not living(folder)
    return [folder / "out" / run for run in RUNS]


@pytest.mark.slow
def test_a_sweep_whose_processes_are_killed_ends_like_one_that_was_not(tmp_path, record_property):
    """Oracle: every file, number and parameter of the runs of a sweep that nothing interrupted; none of its
    processes is left.
    """
    whole = ended(tmp_path / "whole")
    rng, kills = random.Random(0), dict.fromkeys(PROGRAMS, 0)
    while sum(kills.values()) < KILLS:
        folder = tmp_path / f"killed_{sum(kills.values())}"
        folder.mkdir()
        # The program with the fewest kills so far
        while start_and_kill(
            folder, program := min(PROGRAMS, key=kills.get), rng.uniform(*SECONDS)
        ):
            kills[program] += 1
            if sum(kills.values()) == KILLS:
                break
        for run, other in zip(ended(folder), whole, strict=True):
            assert_equal(run, other)
    record_property("kills", kills)
