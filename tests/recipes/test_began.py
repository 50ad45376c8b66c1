"""What a policy that a run left began from, against what the run measured before it trained."""

import json
import shutil

import numpy as np
import pytest

import deepseek_jax as ds
from deepseek_jax.checkpoint.damage import DamagedCheckpoint
from deepseek_jax.checkpoint.left import LEFT
from deepseek_jax.recipes.began import find_start, policy_of_start
from tests.quick import others_slow
from tests.recipes.outcome import scores_in
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
    samples = scores_in(folder, when)["greedy"]["samples"]
    return [(sample["prompt"], sample["completion"]) for sample in samples]


def answers(policy, prompts):
    ids = [{"prompt_ids": policy.tokenizer.encode(prompt)} for prompt in prompts]
    return list(policy.answer(ids, OPTIONS).texts)


@pytest.mark.parametrize("name", others_slow(["grpo", "grpo with an adapter"], "grpo"))
def test_a_run_began_from_its_base(runs, name):
    """Oracle: the greedy answers that the run measured before it trained, and after, which are others."""
    folder = runs(name)
    for place in (folder, folder / "grpo", folder / "grpo" / LEFT["adapter" in name]):
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
    folder, given = shutil.copytree(runs("grpo"), tmp_path / "run"), runs("sft")
    (folder / "init_from").mkdir()
    record(folder, "init_from", start="", checkpoint=str(given))
    record(folder, "grpo", start="init_from")
    policy = ds.load_policy(folder)
    before, theirs = began_from(folder, policy), ds.load_policy(given)
    np.testing.assert_array_equal(before.params["embedding"], theirs.params["embedding"])
    assert before.template == policy.template


def record(folder, stage, **about):
    """Write fields of a stage's stage.json."""
    path = folder / stage / "stage.json"
    before = json.loads(path.read_text()) if path.exists() else {"stage": stage}
    path.write_text(json.dumps(before | about))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: shutil.rmtree(folder / "pretrain"), "or from what is not there any more"),
        (lambda folder: shutil.rmtree(folder / "pretrain/params"), "began from random parameters"),
        (lambda folder: record(folder, "grpo", start=""), "began from no policy"),
        (lambda folder: (folder / "grpo/stage.json").unlink(), "is not in the folder of a run"),
        (
            lambda folder: record(folder, "pretrain", checkpoint="/nowhere"),
            "there is nothing at /nowhere",
        ),
    ],
)
def test_a_start_that_is_not_known_or_gone_is_one_message(runs, tmp_path, change, words):
    """Oracle: the words a reader needs."""
    folder = shutil.copytree(runs("grpo"), tmp_path / "run")
    change(folder)
    with pytest.raises(ValueError, match=words):
        find_start(folder / "grpo/params")


def test_a_stage_of_several_began_from_the_one_before(runs, tmp_path):
    """Oracle: by the records, as R1 leaves them: Dev1, cold_start, began from base, and reasoning from Dev1;
    of a group of stages, by its path.
    """
    made = dict(base="sft", cold_start="grpo", reasoning="sft") | {"students/qwen": "grpo"}
    starts = dict(base="", cold_start="base", reasoning="cold_start") | {"students/qwen": "base"}
    for stage, start in starts.items():
        shutil.copytree(runs(made[stage]) / made[stage] / "params", tmp_path / stage / "params")
        record(tmp_path, stage, start=start)
    for stage in ("cold_start", "reasoning", "students/qwen"):
        for path in (tmp_path / stage, tmp_path / stage / "params"):
            found = began_from(path, ds.load_policy(path))
            expected = ds.load_policy(tmp_path / starts[stage])
            np.testing.assert_array_equal(found.params["embedding"], expected.params["embedding"])
    with pytest.raises(ValueError, match="began from no policy; give the path"):
        find_start(tmp_path / "base")


def test_a_damaged_base_is_named_and_left_as_it_is(runs, tmp_path):
    """Oracle: DamagedCheckpoint, and the names of all files before and after."""
    folder = shutil.copytree(runs("grpo"), tmp_path / "run")
    policy = ds.load_policy(folder)
    flipped("params/state/d/*", 0.5)(folder / "pretrain/params")
    flipped("params/state/ocdbt.process_0/d/*", 0.5)(folder / "pretrain/params")
    names = sorted(folder.rglob("*"))
    with pytest.raises(DamagedCheckpoint, match="pretrain/params.* is damaged"):
        began_from(folder, policy)
    assert sorted(folder.rglob("*")) == names
