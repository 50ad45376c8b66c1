"""DeepSeek-V4 through the recipe of GRPO: a base, reinforcement, what a run leaves, what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import models
from deepseek_jax.checkpoint import load_params
from deepseek_jax.models import RunSettings, build_model, count_params
from deepseek_jax.models.network_config import run_as
from deepseek_jax.models.v4.config import CSA, V4Config
from deepseek_jax.models.v4.decoder import forward
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.grpo import run as grpo
from deepseek_jax.recipes.kinds.reinforce import spread
from deepseek_jax.recipes.sft import run as sft
from deepseek_jax.rollout import generate, load_policy
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import read_metrics
from launch.convert import convert
from tests.experiments import CONFIGS, load
from tests.recipes.outcome import scores_in
from tests.recipes.small import one_device, run_recipe, small_config

# Entries, indexer and router; tests/rollout/test_v4.py has the other layers
MODEL = models.deepseek_v4_tiny(vocab_size=21) | dict(
    num_hidden_layers=1, layer_types=(CSA,), num_hash_layers=0, moe_intermediate_size=8
)


def v4_config(**fields):
    """The ConfigDict of a tiny V4's run at toy size."""
    config = small_config(share_prompts=False, **fields)
    config.model = MODEL
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work directory of a run at toy size."""
    workdir = tmp_path_factory.mktemp("v4")
    run_recipe(grpo, v4_config(eval_every=1), workdir)
    return workdir


def test_sampler_and_trainer_agree_and_the_page_names_the_model(finished):
    """Oracle: two programs for one number, decoding and whole rows; count_params."""
    for line in read_metrics(finished / "metrics.jsonl", "grpo"):
        assert 0 < line["learned_tokens"] and line["sampler_gap_max"] < 2e-5
        assert {"held_out_accuracy", "max_vio/layers_0"} <= line.keys()
    facts = json.loads((finished / "run.json").read_text())
    config = build_model(MODEL)
    described = dict(architecture="deepseek_v4", parameters=count_params(config))
    assert facts["models"]["grpo"] == described
    assert scores_in(finished, "after").keys() == {"sampled", "greedy"}


def test_a_run_leaves_a_checkpoint_that_every_program_reads(finished):
    """Oracle: the tree that the config needs; greedy tokens by whole forward passes."""
    config, params = load_params(finished / "grpo" / "params")
    assert isinstance(config, V4Config)
    policy = load_policy(finished / "grpo" / "params")
    assert policy.config.sliding_window == config.sliding_window
    prompts = [policy.tokenizer.encode("What is 3 + 8 + 5?\n")]
    rollout = generate(config, params, prompts, max_completion_length=8, temperature=0.0)
    row = prompts[0] + rollout.completion_ids[0].tolist()
    logits = jax.jit(forward, static_argnums=0)(config, params, np.asarray([row]))[0]
    greedy = np.argmax(logits, axis=-1)[len(prompts[0]) - 1 : -1]
    np.testing.assert_array_equal(rollout.completion_ids[0], greedy)


def test_a_checkpoint_is_converted_to_a_released_folder_and_read_from_it(finished, tmp_path):
    """Oracle: the parameters of the run, to the bit, read by the program's own loader from other files."""
    source = finished / "grpo" / "params"
    convert(source, tmp_path / "hf")
    policy, theirs = load_policy(tmp_path / "hf"), load_policy(source)
    assert policy.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, policy.params, theirs.params)
    with pytest.raises(ValueError, match="--fp8 .*--like"):
        convert(source, tmp_path / "other", fp8=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_fine_tuning_lowers_the_held_out_loss(tmp_path):
    """Oracle: the loss before. The recipe is fine-tuning, of a tiny V4's base."""
    config = load(CONFIGS / "sft_small.py")
    config.update(dict(num_steps=20, batch_size=8, eval_every=10))
    config.base.update(dict(num_documents=400, batch_size=8, num_steps=5))
    config.base.optimizer.update(dict(kind="adamw", warmup_steps=1))
    config.data.num_held_out = 12
    config.answers.update(dict(num_prompts=8, max_completion_length=12, slots=8))
    config.unlock()
    config.model = models.deepseek_v4_tiny(vocab_size=config.model.vocab_size)
    run_recipe(sft, config, tmp_path)
    losses = [scores_in(tmp_path, when)["loss"]["loss"][0] for when in ("before", "after")]
    assert losses[1] < losses[0] - 0.1


@pytest.mark.slow
def test_a_run_that_resumes_ends_as_one_that_was_not_stopped(finished, tmp_path):
    """Oracle: the parameters of the run that was not stopped, to the bit."""
    steps = iter([False, True])
    with pytest.raises(SystemExit):
        run_recipe(grpo, v4_config(eval_every=1), tmp_path, lambda: next(steps, True))
    run_recipe(grpo, v4_config(eval_every=1), tmp_path)
    ours, theirs = (load_params(folder / "grpo" / "params")[1] for folder in (tmp_path, finished))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(share_prompts=True), ["config.share_prompts=True", "False"]),
        (dict(keep_routing=True), ["config.keep_routing=True", "DeepSeek-V4"]),
        (dict(adapter=dict(rank=2, alpha=4)), ["config.adapter", "deepseek_v4", "an adapter"]),
    ],
)
def test_what_deepseek_v4_does_not_do_is_refused_before_anything_runs(fields, words):
    """Oracle: the message has the field, its value and what to do."""
    config = v4_config()
    config.unlock()
    config.update(fields)
    settings = build(grpo.SETTINGS, config, "config")
    with pytest.raises(ValueError) as error:
        driver.check(grpo.stages(settings), one_device())
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("field", ["fp8", "pipeline_micro_batches"])
def test_a_checkpoint_of_it_runs_only_in_ways_that_it_has(field):
    """Oracle: the message names the field; the others change the config as they say."""
    config = build_model(models.deepseek_v4_tiny())
    run = RunSettings(dtype="bfloat16", remat="full", expert_buffer=2.0)
    changed = dataclasses.replace(config, dtype="bfloat16", remat="full", expert_buffer=2.0)
    assert run_as(config, run) == changed
    with pytest.raises(ValueError, match=f"model.{field}=.*DeepSeek-V4"):
        run_as(config, dataclasses.replace(run, **{field: 2}))


@pytest.mark.parametrize(
    ("items", "most", "by_hand"),
    [
        (range(8), 4, [0, 2, 4, 6]),
        (range(5), 4, [0, 1, 2, 3]),
        (range(3), 4, [0, 1, 2]),
        ([], 4, []),
    ],
)
def test_questions_of_a_measurement_are_spread_over_all(items, most, by_hand):
    """Oracle: by hand."""
    assert spread(items, most) == by_hand
