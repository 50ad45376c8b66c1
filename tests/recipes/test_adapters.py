"""Adapters in every recipe that trains them: the base stays, the adapter is saved alone, and stopping a run
changes nothing.
"""

import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from deepseek_jax.checkpoint import load_adapter, load_orbax
from deepseek_jax.models import build_model, random_params
from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.recipes.distill import run as distill
from deepseek_jax.recipes.grpo import run as grpo
from deepseek_jax.recipes.reward_model import run as reward_model
from deepseek_jax.recipes.sft import run as sft
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rollout import load_policy
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.worlds.bilingual.examples import bilingual_examples
from tests.recipes.distill import test_run as of_distill
from tests.recipes.distill.test_run import files  # noqa: F401
from tests.recipes.grpo.test_run import assert_same_outcome
from tests.recipes.outcome import assert_equal, scores_in, unlisted
from tests.recipes.reward_model import test_run as of_reward_model
from tests.recipes.sft import test_run as of_sft
from tests.recipes.small import LEARNS, longer_is_better, one_device, run_recipe, small_config

LATENT = dict(rank=4, alpha=8.0, targets=["all-linear", "experts.gate_up_proj"])
FAST = dict(learning_rate=0.01)
KL = dict(adapter=LATENT, loss=dict(kl_coef=0.04)) | LEARNS


@pytest.fixture(scope="module", autouse=True)
def a_reward_that_varies():
    with pytest.MonkeyPatch.context() as patch:
        longer_is_better(patch)
        yield


def run_grpo(workdir, should_stop=lambda: False, **fields):
    run_recipe(grpo, small_config(**KL | fields), workdir, should_stop)


@pytest.fixture(scope="module")
def finished(toys):
    return toys.run(small_config(**KL), longer_is_better)


def test_the_guide_lists_every_file_of_the_run(finished):
    """Oracle: the files that the run left, an adapter among them."""
    assert (finished / "grpo" / "adapter").is_dir() and unlisted(finished) == []


def left_beside_its_base(workdir, stage):
    """(ModelConfig, base, AdaptedParams) of what a stage leaves."""
    config, base = load_orbax(workdir / "pretrain/params", mesh=one_device())
    return config, base, load_adapter(workdir / stage / "adapter", config, base, one_device())


@pytest.mark.slow
def test_grpo_trains_the_adapter_alone_and_saves_it_alone(finished):
    """Oracle: the pre-trained base, to the bit; and Orbax' last checkpoint, which holds the adapter and its
    moments, with the numbers of the folder that is left.
    """
    _, base, adapted = left_beside_its_base(finished, "grpo")
    pretrained = ocp.load_checkpointables(finished / "pretrain/checkpoints/5")["state"]["params"]
    jax.tree.map(np.testing.assert_array_equal, base, pretrained)
    assert not (finished / "grpo/params").exists()
    state = ocp.load_checkpointables(finished / "grpo/checkpoints/2")["state"]
    assert state["frozen"] is None
    jax.tree.map(np.testing.assert_array_equal, state["params"], adapted.adapter)
    assert all(pair["lora_b"].any() for pair in adapted.adapter["moe_layers"].values())


def test_the_frozen_policy_is_the_reference(finished):
    """Oracle: by hand: no KL at the first step, where the adapter changes nothing; then some. The sampler's
    log-probabilities are the trainer's.
    """
    first, second = read_metrics(finished / "metrics.jsonl", "grpo")
    assert abs(first["kl"]) < 1e-9 and second["kl"] > 1e-4
    assert all(line["sampler_gap_mean"] < 1e-5 for line in (first, second))


@pytest.mark.slow
def test_a_stopped_run_ends_like_one_that_was_not(finished, tmp_path):
    """Oracle: the metrics, measurements and adapter of the run that nothing interrupted, to the bit."""
    asked = []

    def after_the_first_step():
        asked.append(None)
        return len(asked) > 5

    with pytest.raises(SystemExit):
        run_grpo(tmp_path, after_the_first_step)
    run_grpo(tmp_path)
    assert_same_outcome(tmp_path, finished)
    name = "grpo/adapter/adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    run_grpo(tmp_path)


@pytest.mark.slow
def test_fine_tuning_lowers_the_loss_by_an_adapter(tmp_path):
    """Oracle: the held-out loss before and after."""
    fields = dict(adapter=LATENT, num_steps=8, optimizer=FAST)
    run_recipe(sft, of_sft.small_config(**fields), tmp_path)
    before, after = (scores_in(tmp_path, when)["loss"]["loss"][0] for when in ("before", "after"))
    assert after < before - 0.1
    _, _, adapted = left_beside_its_base(tmp_path, "sft")
    assert isinstance(adapted, AdaptedParams) and not (tmp_path / "sft/params").exists()


@pytest.mark.slow
def test_a_base_in_int8_learns_too(finished, tmp_path):
    """Oracle: by hand: at the first step no KL to the frozen policy in int8, and the sampler's
    log-probabilities are the trainer's; the adapter that is left belongs to the base.
    """
    shutil.copytree(finished / "pretrain", tmp_path / "pretrain")
    run_grpo(tmp_path, adapter=LATENT | dict(quantize="int8"))
    first, second = read_metrics(tmp_path / "metrics.jsonl", "grpo")
    assert abs(first["kl"]) < 1e-9 and second["kl"] > 1e-4
    assert all(line["sampler_gap_mean"] < 1e-5 for line in (first, second))
    _, _, adapted = left_beside_its_base(tmp_path, "grpo")
    assert all(pair["lora_b"].any() for pair in adapted.adapter["moe_layers"].values())


@pytest.mark.slow
def test_a_reward_model_is_an_adapter_and_a_head(tmp_path):
    """Oracle: the report at the end of training: how many held-out pairs have a chosen response that earns
    more, by the model that is read from its folder.
    """
    config = of_reward_model.small_config(adapter=LATENT, optimizer=FAST, num_steps=6)
    run_recipe(reward_model, config, tmp_path)
    left = tmp_path / "reward_model/params"
    assert not (left / "decoder").exists()
    liked = {"liked": ModelRewardSettings(str(left), batch_size=8)}
    model = load_model_rewards(liked, one_device())["liked"]
    sizes = dict(num_train=32, num_held_out=12, seed=0)
    held_out = bilingual_examples("preferences", **sizes).held_out
    chosen, rejected = (
        model.score(held_out, [record[name] for record in held_out])
        for name in ("chosen", "rejected")
    )
    right = round(12 * of_reward_model.measured(tmp_path, "after")["accuracy"][0])
    assert sum(a > b for a, b in zip(chosen, rejected, strict=True)) == right


@pytest.mark.slow
def test_a_stopped_reward_model_ends_like_one_that_was_not(tmp_path):
    """Oracle: all that the run that nothing interrupted leaves, to the bit: metrics, adapter, head."""
    config = of_reward_model.small_config(adapter=LATENT, optimizer=FAST)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_recipe(reward_model, config, whole)
    # Two steps of pre-training, then in the second of the reward model
    stops = iter([False, False, False, True])
    with pytest.raises(SystemExit):
        run_recipe(reward_model, config, stopped, lambda: next(stops))
    assert (stopped / "reward_model/checkpoints").exists()
    run_recipe(reward_model, config, stopped)
    assert_equal(stopped, whole)


@pytest.mark.slow
def test_a_student_is_an_adapter_of_its_start(files, tmp_path):  # noqa: F811
    """Oracle: the start's parameters, to the bit; every term still reaches the student; and the projections,
    which train in full, are dropped. The student's base is in int8.
    """
    config = of_distill.small_config(files)
    config.students.qwen.adapter = dict(rank=2, alpha=4.0, quantize="int8")
    of_distill.run(tmp_path, config)
    student = load_policy(tmp_path / "students" / "qwen")
    adapted, start = student.params, build_model(config.starts.qwen.model)
    jax.tree.map(
        np.testing.assert_array_equal, adapted.base, random_params(start, one_device(), config.seed)
    )
    assert not (tmp_path / "students" / "qwen" / "params").exists()
    assert all(pair["lora_b"].any() for pair in adapted.adapter["dense_layers"].values())
    lines = read_metrics(tmp_path / "metrics.jsonl", "students/qwen")
    assert lines[0]["hidden"] > 0 and lines[-2]["loss"] < lines[0]["loss"]
    # The stage is complete: nothing is trained again
    of_distill.run(tmp_path, config)


@pytest.mark.slow
def test_a_stopped_student_ends_like_one_that_was_not(files, tmp_path):  # noqa: F811
    """Oracle: all that the run that nothing interrupted leaves, to the bit. The projections, which train
    beside the adapter and are in no folder, show in the losses.
    """
    config = of_distill.small_config(files)
    config.students.qwen.adapter = dict(rank=2, alpha=4.0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    of_distill.run(whole, config)
    stops = iter([False, True])
    with pytest.raises(SystemExit):
        run_recipe(distill, config, stopped, lambda: next(stops))
    of_distill.run(stopped, config)
    assert_equal(stopped, whole)


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            dict(adapter=LATENT, loss=dict(kl_coef=0.1), reference_every=2),
            "config.reference_every=2 replaces the reference, which beside an adapter is the frozen policy",
        ),
        (
            dict(adapter=LATENT, loss=dict(kl_coef=0.1), reference_dtype="bfloat16"),
            "config.reference_dtype='bfloat16', but beside an adapter the frozen policy is the reference",
        ),
    ],
)
def test_settings_that_cannot_be_run_are_refused(fields, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        build(grpo.SETTINGS, small_config(**fields), "config")
    assert words in str(error.value)


def test_a_target_that_the_model_lacks_is_refused_before_anything_is_trained(tmp_path):
    """Oracle: the field, the target, and an empty work directory."""
    adapter = LATENT | dict(targets=["q_proj"])
    with pytest.raises(ValueError, match="config.adapter.targets=.*'q_proj' is not a module"):
        run_grpo(tmp_path, adapter=adapter)
    assert not (tmp_path / "pretrain").exists()
