"""The folder of a sweep: whose it is, and what it remembers of its runs."""

import json

import pytest

from launch.engines import RUNNING
from launch.sweeps.folder import Folder
from launch.sweeps.follow import cancel
from launch.sweeps.runs import Run
from launch.sweeps.sort import sort_runs

IDENTITY = {"config": "/a/tiny.py:steps=4", "sweep": "/a/seeds.py"}
RUNS = [Run(f"seed={seed}", {"seed": seed}, {"seed": seed, "rate": 0.1}) for seed in range(5)]


class Engine:
    """An engine whose states are given."""

    name, poll_seconds = "local", 0.0

    def __init__(self, **states):
        self.states, self.cancelled = states, []

    def state(self, ids):
        return {identity: self.states[identity] for identity in ids if identity in self.states}

    def cancel(self, ids):
        self.cancelled += ids
        self.states = {}


@pytest.fixture
def folder(tmp_path):
    """A folder with five runs: seed=0 complete, seed=1 live, seed=2 failed, seed=3 saved, seed=4 new."""
    folder = Folder(tmp_path, IDENTITY)
    folder.record_start("local")
    folder.submitted(RUNS[:4], ["a", "b", "c", "d"])
    folder.ended("seed=0", 0)
    folder.ended("seed=2", 2)
    folder.ended("seed=3", 75)
    return folder


def names(runs):
    return [run.name for run in runs]


def test_what_is_complete_or_lives_is_not_started_again(folder):
    """Oracle: by hand."""
    plan = sort_runs(folder, RUNS, Engine(b=RUNNING), only_failed=False)
    assert names(plan.complete) == ["seed=0"] and plan.live == {"seed=1": "b"}
    assert names(plan.start) == ["seed=2", "seed=3", "seed=4"] and plan.left_alone == []


def test_only_failed_runs_are_started_again_where_that_is_asked_for(folder):
    """Oracle: by hand: seed=1 was killed, so it left no exit status; seed=3 had saved."""
    plan = sort_runs(folder, RUNS, Engine(), only_failed=True)
    assert names(plan.start) == ["seed=1", "seed=2"] and names(plan.left_alone) == [
        "seed=3",
        "seed=4",
    ]


def test_a_run_that_ended_while_nobody_followed_is_complete(folder):
    """Oracle: the exit status that it left; complete.json then has it."""
    (folder.path / "seed=1.status").write_text("0")
    plan = sort_runs(folder, RUNS, Engine(), only_failed=False)
    assert names(plan.complete) == ["seed=0", "seed=1"]
    assert json.loads((folder.path / "complete.json").read_text())["seed=1"] == RUNS[1].config


def test_a_changed_config_runs_again_unless_the_run_still_lives(folder):
    """Oracle: the words a reader needs, and the complete run among those to start."""
    changed = [run._replace(config=run.config | {"rate": 0.2}) for run in RUNS]
    assert names(sort_runs(folder, changed, Engine(), False).start) == names(RUNS)
    with pytest.raises(ValueError, match="seed=1 runs with another config; wait .* --cancel"):
        sort_runs(folder, changed, Engine(b=RUNNING), only_failed=False)


def test_another_sweep_is_refused_and_nothing_is_touched(folder):
    """Oracle: what differs, in words; the folder's bytes."""
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    for name, other in (("sweep", "/a/rates.py"), ("config", "/a/tiny.py")):
        words = f"belongs to another sweep.*--{name} is {IDENTITY[name]} there, and {other} here"
        with pytest.raises(ValueError, match=words):
            Folder(folder.path, IDENTITY | {name: other}).record_start("local")
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


def test_a_folder_that_is_no_sweeps_is_refused(tmp_path):
    """Oracle: the words a reader needs."""
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and has no sweep.json"):
        Folder(tmp_path, IDENTITY).check()


def test_live_jobs_of_another_engine_are_left_to_it(folder):
    """Oracle: the words a reader needs; nothing to say once every job has ended."""
    with pytest.raises(ValueError, match="on another engine: give --engine=local"):
        folder.record_start("slurm")
    folder.ended("seed=1", 0)
    folder.record_start("slurm")


def test_a_cancel_asks_what_lives_and_leaves_a_sign(folder, tmp_path):
    """Oracle: by hand; the next start removes the sign."""
    engine = Engine(b=RUNNING)
    assert cancel(folder, engine, lambda: False) == ["seed=1"] and engine.cancelled == ["b"]
    assert folder.cancelled.exists() and folder.status("seed=1") == 75
    folder.record_start("local")
    assert not folder.cancelled.exists()
    with pytest.raises(ValueError, match="there is no sweep in"):
        cancel(Folder(tmp_path / "none", IDENTITY), engine, lambda: False)
