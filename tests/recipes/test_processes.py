"""Whole recipes by two processes: the numbers of one on the same mesh, resumed by another number of them."""

import contextlib
import importlib
import itertools
import json

import jax
import numpy as np
import pytest

from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.checkpoint.reward_params import load_reward_model
from deepseek_jax.parallel import make_mesh
from deepseek_jax.training.loop import STOPPED
from deepseek_jax.training.metrics import read_phases
from tests.processes import run_two
from tests.recipes import small
from tests.recipes.cases import CASES
from tests.recipes.small import CLOCKS, run_recipe

# float32, summed in another order between processes than within one
CLOSE = dict(rtol=1e-3, atol=2e-5)
# Of a parameter's norm: Adam makes a whole step of the rounding errors of a gradient that is nearly 0
FAR = 1e-3


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

    stop: the number of the call of should_stop that asks, from 1 on. asked: whether this process is asked.
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
                lambda: next(calls) == stop and asked,
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
    case, ours, theirs = CASES[name], folder / name / "shared", folder / name / "whole"
    lines = [read_phases(each / "metrics.jsonl") for each in (ours, theirs)]
    assert_close(*({p: [_timeless(r) for r in of] for p, of in each.items()} for each in lines))
    for pattern in case.says:
        paths = [path.relative_to(theirs) for path in sorted(theirs.glob(pattern))]
        assert paths, pattern
        for path in paths:
            assert_close(_json(ours / path), _json(theirs / path), str(path))
    for leaf in case.leaves:
        jax.tree.map(_assert_near, _params(ours / leaf), _params(theirs / leaf))


def _timeless(record):
    return {name: value for name, value in record.items() if not name.endswith(CLOCKS)}


def _json(path):
    text = path.read_text()
    return (
        [json.loads(line) for line in text.splitlines()]
        if path.suffix == ".jsonl"
        else json.loads(text)
    )


def _params(folder):
    load = load_reward_model if (folder / "head").exists() else load_orbax
    return load(folder, mesh=small.one_device())[1]


def _assert_near(ours, theirs):
    distance = np.linalg.norm(np.float64(ours) - np.float64(theirs))
    assert distance <= FAR * np.linalg.norm(theirs), distance


def assert_close(ours, theirs, where=""):
    """Two trees of JSON: floats are close, everything else is equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name in ours:
            assert_close(ours[name], theirs[name], f"{where}/{name}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_close(*pair, f"{where}/{number}")
    elif isinstance(ours, float) and isinstance(theirs, float):
        np.testing.assert_allclose(ours, theirs, **CLOSE, err_msg=where)
    else:
        assert ours == theirs, where


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
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("pretrain", "grpo", "r1")])
def test_a_recipe_passes_from_two_processes_to_one_and_back(tmp_path, name):
    """Oracle: one process's run on the same mesh, which nothing stopped."""
    turn(name, tmp_path / name / "whole")
    turns_of_two(tmp_path, **{name: CASES[name].stop})
    turn(name, tmp_path / name / "shared", stop=1)
    turns_of_two(tmp_path, **{name: None})
    assert_same(tmp_path, name)
