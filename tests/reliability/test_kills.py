"""Runs that are killed at any moment, again and again, and end like one that nothing interrupted."""

import signal

import pytest

from tests.quick import others_slow
from tests.recipes.cases import CASES
from tests.recipes.outcome import assert_equal, assert_near
from tests.reliability.killed import NEVER, WORKERS
from tests.reliability.kills import Killer, kill_again_and_again

KILLS, WORKERS_KILLED = 20, 4
WITH_WORKERS = "grpo with workers"


@pytest.fixture
def killed(record_property):
    """A function that notes a Killer's kills for the table."""
    return lambda killer: record_property("kills", dict(killer.kills))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != WITH_WORKERS])
def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(name, tmp_path, killed):
    """Oracle: every file, number, text and parameter of the run that nothing interrupted, bit for bit; on
    another mesh the numbers of tests/recipes/test_processes.py, but for rounding.
    """
    killer = Killer(name, tmp_path)
    kill_again_and_again(killer, KILLS)
    killed(killer)
    (there,) = killer.moments
    # In the first save, or between the first two parts of an evaluation
    moment = "save:5:0.1" if there.get("save", 0) >= 5 else "evaluation:2:0"
    ((status, output),) = killer.start(tmp_path / "wider", [moment])
    assert status == -signal.SIGKILL, output
    ((status, output),) = killer.start(tmp_path / "wider", [NEVER], devices=2)
    assert status == 0, output
    assert_near(CASES[name], tmp_path / "wider", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "grpo"])
def test_a_run_of_two_processes_of_which_one_is_killed_goes_on(name, tmp_path, killed):
    """Oracle: as above. The other process ends by itself, because its peer does not answer."""
    killer = Killer(name, tmp_path, processes=2)
    kill_again_and_again(killer, KILLS)
    killed(killer)


@pytest.mark.slow
def test_a_run_whose_reward_workers_are_killed_ends_like_one_that_was_not(tmp_path, killed):
    """Oracle: as above, and what the process says of the workers that it killed."""
    killer = Killer(WITH_WORKERS, tmp_path)
    (there,) = killer.moments
    for number in range(WORKERS_KILLED):
        place = tmp_path / str(number)
        at = killer.rng.randint(there["rollout"] // 2, there["rollout"])
        moment = f"{WORKERS}rollout:{at}:{killer.rng.uniform(0, 0.3):.3f}"
        ((status, output),) = killer.start(place, [moment])
        assert status == 0 and "killed workers: 2" in output, output
        assert_equal(place, tmp_path / "whole")
        killer.kills["rollout"] += 1
    killed(killer)


@pytest.mark.parametrize("name", others_slow(["pretrain", "grpo"], "pretrain"))
def test_a_killed_run_goes_on(name, tmp_path):
    """Oracle: as above, for one kill."""
    kill_again_and_again(Killer(name, tmp_path), 1)
