"""Whole recipes by two processes: the numbers of one on the same mesh, resumed by another number of them."""

import contextlib
import dataclasses
import importlib
import itertools
import json
from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import models
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.checkpoint.reward_params import load_reward_model
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rewards import scoring
from deepseek_jax.training.loop import STOPPED
from deepseek_jax.training.metrics import read_phases
from tests.processes import run_two
from tests.recipes import small, test_judge
from tests.recipes.distill import test_run as of_distill
from tests.recipes.generate import test_run as of_generate
from tests.recipes.grpo import test_run as of_grpo
from tests.recipes.pretrain import test_run as of_pretrain
from tests.recipes.r1 import test_run as of_r1
from tests.recipes.reward_model import test_run as of_reward_model
from tests.recipes.sft import test_run as of_sft
from tests.recipes.small import CLOCKS, run_recipe
from tests.tiny import save_tiny_model

# float32, summed in another order between processes than within one
CLOSE = dict(rtol=1e-3, atol=2e-5)
# Of a parameter's norm: Adam makes a whole step of the rounding errors of a gradient that is nearly 0
FAR = 1e-3


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe at toy size. config(folder) -> its ConfigDict; folder: of what all its runs read.

    stop: of the first turn's calls of should_stop, the one that asks. leaves: of the work directory,
    parameters. says: JSON files and lines, by patterns. replace(patch): replaces rules that such a small
    model never meets.
    """

    recipe: str
    config: Callable
    stop: int = 3
    leaves: tuple[str, ...] = ("params",)
    says: tuple[str, ...] = ("before.json", "after.json")
    replace: Callable = lambda patch: None


def longer_is_better(patch):
    """A model of two steps answers nothing right, but its answers have lengths."""
    patch.setitem(scoring.RULES, "correct_reasoning", scoring.Rule(of_grpo.by_length))


def pretrain(folder):
    """A dense layer, in one stage without multi-token prediction: little to compile. Asked in the first of
    its three steps, two processes stop in the second.
    """
    rows = dict(batch_size=((0, 8),), micro_batch_size=8, sequence_length=32, num_steps=3)
    more = dict(mtp_weight=((0, 0.0),), bias_update_speed=((0, 0.0),), balance_weight=0.0)
    config = of_pretrain.small_config(**rows, **more)
    del config.stages["stage_2_long"]
    config.stages.stage_1.optimizer.phases = [dict(kind="constant", steps=3, to=1e-3)]
    config.model = models.qwen2_tiny(vocab_size=264) | dict(num_hidden_layers=1)
    config.data.num_held_out, config.data.readers = 60, 2
    return config


def pretrain_in_stages(folder):
    """Experts, multi-token prediction, rows that grow, and a second stage."""
    config = of_pretrain.small_config(batch_size=((0, 8), (2, 16)), micro_batch_size=8)
    config.stages["stage_2_long"].batch_size = 8
    config.data.num_held_out, config.data.readers = 60, 4
    return config


def grpo(folder):
    return with_one_layer(grpo_of_experts(folder))


def with_one_layer(config):
    """A config whose base has one dense layer: little to compile."""
    sizes = dict(num_hidden_layers=1)
    config.model = models.qwen2_tiny(vocab_size=config.model.vocab_size) | sizes
    config.base.update(dict(bias_update_speed=0.0, num_steps=2))
    return config


def grpo_of_experts(folder):
    config = small.small_config(num_steps=2, prompts_per_step=8, group_size=2)
    config.base.num_steps = 2
    return config


def sft(folder):
    config = of_sft.small_config(num_steps=4)
    config.data.readers = 2
    return with_one_layer(config)


def reward_model(folder):
    return with_one_layer(of_reward_model.small_config(num_steps=4))


def judge(folder):
    config = test_judge.small_config(num_steps=4, batch_size=8, save_every=1, log_every=1, slots=8)
    config.data.readers = 2
    return with_one_layer(config)


def evaluate(folder):
    checkpoint = folder / "checkpoint" / "params"
    if not checkpoint.exists():
        save_tiny_model(checkpoint)
    config = dict(recipe="evaluate", checkpoint=str(checkpoint), data=["arithmetic"], samples=3)
    config |= dict(max_completion_length=12, num_problems=6, save_every=2, slots=8)
    return ConfigDict(config)


def generate(folder):
    return with_one_layer(of_generate.small_config(chunk_size=2))


def distill(folder):
    files = folder / "teacher", str(folder / "texts.jsonl")
    if not files[0].exists():
        of_distill.make_files(folder)
    return of_distill.small_config((folder, files[1]), readers=2)


def distill_from_a_cache(folder):
    """The teacher's likeliest tokens, which the devices of both processes compute, and one of them writes."""
    config = distill(folder)
    student = config.students.qwen
    student.loss = dict(weights=dict(soft=0.5, hard=0.5), top_k=8, temperature=2.0)
    student.batch_size, student.micro_batches, student.num_steps = 16, 2, 6
    return config


def r1(folder):
    config = of_r1.small_config()
    config.base.batch_size = 8
    for name in ("zero", "reasoning", "scenarios"):
        config[name].prompts_per_step = 8
        config[name].rollout.slots = 8
    for name in ("cold_start", "sft", *of_r1.REWARD_MODELS, "judge"):
        config[name].batch_size = 8
    for name in ("traces", "rejection", "judged", "evaluation"):
        config[name].slots = 8
    config.judge.slots = 8
    config.sft.data.readers = 2
    return with_one_layer(config)


STAGES = tuple(f"{name}/params" for name in of_r1.MEASURED)
CASES = {
    "pretrain": Case("pretrain", pretrain, stop=1, says=("stage_1_*.json",)),
    "pretrain in stages": Case("pretrain", pretrain_in_stages, says=("stage*.json", "drafts.json")),
    "grpo": Case("grpo", grpo, replace=longer_is_better),
    "grpo of experts": Case("grpo", grpo_of_experts, replace=longer_is_better),
    "sft": Case("sft", sft),
    "reward_model": Case("reward_model", reward_model),
    "judge": Case("judge", judge),
    "evaluate": Case("evaluate", evaluate, 1, (), ("results.json",)),
    "generate": Case(
        "generate",
        generate,
        stop=5,
        leaves=("base/params",),
        says=("samples/*.jsonl", "report.json", "dataset/fates.json"),
    ),
    "distill": Case("distill", distill, leaves=("students/qwen/params",), says=("*/*/stage.json",)),
    "distill from a cache": Case(
        "distill",
        distill_from_a_cache,
        stop=2,
        leaves=("students/qwen/params",),
        says=("*/*/stage.json", "students/qwen/targets/*/*/*/features.json"),
    ),
    "r1": Case(
        "r1",
        r1,
        stop=5,
        leaves=STAGES,
        says=("measured/*/scores.json", "*/accepted.jsonl", "*/before.json", "*/after.json"),
        replace=of_r1.make_rules_easy,
    ),
}

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
