"""Whole recipes by two processes: the numbers of one on the same mesh, resumed by another number of them."""

import contextlib
import importlib
import itertools
import json

import jax
import pytest

from deepseek_jax.parallel import make_mesh
from deepseek_jax.training.loop import STOPPED
from tests.processes import run_two
from tests.recipes.cases import CASES
from tests.recipes.outcome import assert_near
from tests.recipes.small import run_recipe

# Tested apart, or, with workers, as the recipe is without them
ELSEWHERE = "pretrain", "grpo", "grpo with workers", "r1"
ONE_OF_TWO = """
import json, sys
from pathlib import Path
import jax
process, port, folder, turns = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
from tests.recipes.test_processes import turn
for name, stop in json.loads(turns).items():
    # The second process alone is asked to stop
    turn(name, Path(folder) / name / "shared", stop, asked=process == "1")
    print("made its turn at", name, flush=True)
"""


def crossing_mesh():
    """Data and fsdp cross between two processes of four devices each, whose rows are no neighbours."""
    devices = jax.devices()
    devices = [*devices[:2], *devices[4:], *devices[2:4]]
    return make_mesh(data=2, fsdp=2, expert=2, devices=devices)


def turn(name, workdir, stop=None, asked=True):
    """Run or resume a case in workdir, to its end or until it is stopped.

    stop: the number of the call of should_stop from which on it asks, as a signal does, 1 for the first.
    asked: whether this process is asked.
    """
    case, calls = CASES[name], itertools.count(1)
    recipe = importlib.import_module(f"deepseek_jax.recipes.{case.recipe}.run")
    with pytest.MonkeyPatch.context() as patch:
        case.replace(patch)
        config = case.config(workdir.parent)
        leaves = pytest.raises(SystemExit) if stop else contextlib.nullcontext()
        with leaves as stopped:
            run_recipe(
                recipe,
                config,
                workdir,
                lambda: stop is not None and next(calls) >= stop and asked,
                crossing_mesh(),
            )
    assert not stop or stopped.value.code == STOPPED


def turns_of_two(folder, **turns):
    """turn() by two processes, of several cases one after another. turns: case -> stop."""
    flags = "--xla_force_host_platform_device_count=4"
    statuses, outputs = run_two(ONE_OF_TWO, folder, json.dumps(turns), xla_flags=flags)
    assert statuses == [0, 0], "\n".join(outputs)


def assert_same(folder, name):
    """Both work directories of a case hold the same numbers, texts and parameters."""
    assert_near(CASES[name], folder / name / "shared", folder / name / "whole")


@pytest.mark.slow
def test_pretrain_and_grpo_pass_between_two_processes_and_one(tmp_path):
    """Oracle: one process's runs on the same mesh, which nothing stopped. One pair of processes begins the
    first, and ends the second, which saves the start of another pair.
    """
    for name in ("pretrain", "grpo"):
        turn(name, tmp_path / name / "whole")
    turn("grpo", tmp_path / "grpo" / "shared", CASES["grpo"].stop)
    turns_of_two(tmp_path, pretrain=CASES["pretrain"].stop, grpo=None)
    turn("pretrain", tmp_path / "pretrain" / "shared")
    for name in ("pretrain", "grpo"):
        assert_same(tmp_path, name)


@pytest.mark.slow
def test_r1_passes_from_one_process_to_two(tmp_path):
    """Oracle: one process's run on the same mesh, which nothing stopped."""
    turn("r1", tmp_path / "r1" / "whole")
    turn("r1", tmp_path / "r1" / "shared", CASES["r1"].stop)
    turns_of_two(tmp_path, r1=None)
    assert_same(tmp_path, "r1")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ELSEWHERE])
def test_a_recipe_passes_from_two_processes_to_one_and_back(tmp_path, name):
    """Oracle: one process's run on the same mesh, which nothing stopped."""
    turn(name, tmp_path / name / "whole")
    turns_of_two(tmp_path, **{name: CASES[name].stop})
    turn(name, tmp_path / name / "shared", stop=1)
    turns_of_two(tmp_path, **{name: None})
    assert_same(tmp_path, name)
