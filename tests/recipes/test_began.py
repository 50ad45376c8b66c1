"""What a policy that a run left began from, against what the run measured before it trained."""

import json
import shutil

import numpy as np
import pytest

import deepseek_jax as ds
from deepseek_jax.checkpoint.damage import DamagedCheckpoint
from deepseek_jax.checkpoint.left import LEFT
from deepseek_jax.checkpoint.phase import newest_in
from deepseek_jax.recipes.began import find_start, policy_of_start
from tests.quick import others_slow
from tests.recipes.sft import test_run as of_sft
from tests.recipes.small import LEARNS, longer_is_better, one_device, small_config
from tests.recipes.test_adapters import KL
from tests.reliability.goods import flipped

OPTIONS = ds.AnswerOptions(max_completion_length=12, temperature=0.0, slots=2)


RUNS = {
    "sft": lambda toys: toys.run(of_sft.small_config()),
    "grpo": lambda toys: toys.run(small_config(**LEARNS), longer_is_better),
    "grpo with an adapter": lambda toys: toys.run(small_config(**KL), longer_is_better),
}


@pytest.fixture
def runs(toys):
    """name -> the work directory of a tiny run."""
    return lambda name: RUNS[name](toys)


def began_from(place, policy):
    return policy_of_start(find_start(place), policy, one_device())


def measured(folder, when):
    """[(prompt, greedy completion)] of samples that a run kept."""
    samples = json.loads((folder / f"{when}.json").read_text())["greedy"]["samples"]
    return [(sample["prompt"], sample["completion"]) for sample in samples]


def answers(policy, prompts):
    ids = [{"prompt_ids": policy.tokenizer.encode(prompt)} for prompt in prompts]
    return list(policy.answer(ids, OPTIONS).texts)


@pytest.mark.parametrize("name", others_slow(["grpo", "grpo with an adapter"], "grpo"))
def test_a_run_began_from_its_base(runs, name):
    """Oracle: the greedy answers that the run measured before it trained, and after, which are others."""
    folder = runs(name)
    for place in (folder, folder / LEFT["adapter" in name]):
        policy = ds.load_policy(place)
        before = began_from(place, policy)
        prompts, texts = zip(*measured(folder, "before"), strict=True)
        prompts = [prompt + "\n" for prompt in prompts]
        assert answers(before, prompts) == list(texts)
        prompts, after = zip(*measured(folder, "after"), strict=True)
        assert answers(policy, [prompt + "\n" for prompt in prompts]) == list(after) != list(texts)
        assert before.template == policy.template


def test_a_run_that_was_given_a_checkpoint_began_from_it(runs, tmp_path):
    """Oracle: the parameters of the checkpoint; the template is the run's own."""
    folder = shutil.copytree(runs("grpo"), tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    given = runs("sft")
    (folder / "config.json").write_text(json.dumps(config | dict(init_from=str(given), base=None)))
    policy = ds.load_policy(folder)
    before, theirs = began_from(folder, policy), ds.load_policy(given)
    np.testing.assert_array_equal(before.params["embedding"], theirs.params["embedding"])
    assert before.template == policy.template


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: shutil.rmtree(folder / "pretrain"), "pretrain has no checkpoint"),
        (lambda folder: change_config(folder, base=None), "began from random parameters"),
        (lambda folder: (folder / "config.json").unlink(), "is not in the folder of a run"),
    ],
)
def test_a_start_that_is_not_known_or_gone_is_one_message(runs, tmp_path, change, words):
    """Oracle: the words a reader needs."""
    folder = shutil.copytree(runs("grpo"), tmp_path / "run")
    change(folder)
    with pytest.raises(ValueError, match=words):
        find_start(folder)


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_a_stage_of_r1_began_from_the_one_before(runs, tmp_path):
    """Oracle: by the list of R1's stages Dev1, cold_start, began from base, and reasoning from Dev1."""
    for stage, made in dict(base="sft", cold_start="grpo", reasoning="sft").items():
        shutil.copytree(runs(made) / "params", tmp_path / stage / "params")
    (tmp_path / "config.json").write_text('{"recipe": "r1"}')
    for stage, start in (("cold_start", "base"), ("reasoning", "cold_start")):
        path = tmp_path / stage / "params"
        found = began_from(path, ds.load_policy(path))
        expected = ds.load_policy(tmp_path / start / "params")
        np.testing.assert_array_equal(found.params["embedding"], expected.params["embedding"])
    with pytest.raises(ValueError, match="is not recorded; give the path"):
        find_start(tmp_path / "base" / "params")


def test_a_base_may_have_ended_with_its_best_checkpoint(tmp_path):
    """Oracle: scores by hand; of equals the newest; a folder without a score is none of the best."""
    for step, score in (("2", 1.0), ("4", 3.0), ("6", 1.0), ("8", None)):
        metrics = tmp_path / step / "metrics"
        metrics.mkdir(parents=True)
        if score is not None:
            (metrics / "metrics").write_text(json.dumps({"score": score}))
    (tmp_path / "10.damaged").mkdir()
    assert newest_in(tmp_path).name == "8"
    assert newest_in(tmp_path, "lowest").name == "6" and newest_in(tmp_path, "highest").name == "4"


def test_a_damaged_base_is_named_and_left_as_it_is(runs, tmp_path):
    """Oracle: DamagedCheckpoint, and the names of all files before and after."""
    folder = shutil.copytree(runs("grpo"), tmp_path / "run")
    policy = ds.load_policy(folder)
    newest = max((folder / "pretrain").iterdir(), key=lambda path: int(path.name))
    flipped("state/d/*", 0.5)(newest)
    flipped("state/ocdbt.process_0/d/*", 0.5)(newest)
    names = sorted(folder.rglob("*"))
    with pytest.raises(DamagedCheckpoint, match=f"pretrain/{newest.name} is damaged"):
        began_from(folder, policy)
    assert sorted(folder.rglob("*")) == names
