"""The judge's recipe at toy size: the saved judge agrees with the verdicts that the run measured."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs.judge_small import get_config
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.judge import run as judge
from deepseek_jax.recipes.kinds.judge import JudgedPairs
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rewards import Rewards
from deepseek_jax.rewards.judge import verdict
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.worlds.arithmetic.world import SUMS
from deepseek_jax.worlds.bilingual.examples import bilingual_examples
from tests.recipes.outcome import unlisted, without_group
from tests.recipes.pages import data_of, parts_of
from tests.recipes.small import run_recipe

SIZES = dict(num_train=16, num_held_out=6)


def small_config(**fields):
    """The ConfigDict of sixty steps on sixteen judgements; fields: others of JudgeSettings."""
    config = get_config()
    config.update(dict(num_steps=60, batch_size=4, save_every=20, log_every=20))
    config.base.update(dict(num_documents=200, batch_size=8, num_steps=2))
    config.base.optimizer.warmup_steps = 1
    config.optimizer.warmup_steps = 0
    config.data.update(SIZES)
    config.unlock()
    config.update(fields)
    return config


def run(workdir, should_stop=lambda: False, **fields):
    config = small_config(**fields)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        run_recipe(judge, config, workdir, should_stop, mesh)


def measured(workdir, name):
    return json.loads((workdir / "judge" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work directory of a run that was stopped after its first step, and run again."""
    workdir = tmp_path_factory.mktemp("finished")
    with pytest.raises(SystemExit):
        run(workdir, should_stop=lambda: True)
    run(workdir)
    return workdir


@pytest.mark.slow
def test_every_metric_has_a_group_on_the_boards(finished):
    """Oracle: the names of the lines that a run leaves, against the table of groups."""
    assert without_group(finished) == set()


@pytest.mark.slow
def test_the_guide_lists_every_file_of_the_run(finished):
    """Oracle: the files that the run left."""
    assert unlisted(finished) == []


@pytest.mark.slow
def test_a_judge_learns_to_give_verdicts(finished):
    """Oracle: a base that saw two updates gives none; sixty updates on sixteen judgements teach their form,
    so that most pairs have two verdicts, right or not.
    """
    before, after = (measured(finished, name) for name in ("before", "after"))
    assert before["no_verdict"][0] == 1.0 and before["accuracy"][0] == 0.0
    assert after["no_verdict"][0] < 0.5 and after["pairs"] == 6
    losses = [record["loss"] for record in read_metrics(finished / "metrics.jsonl", "judge")]
    assert losses[-1] < losses[0] / 2


@pytest.mark.slow
def test_a_run_leaves_a_page(finished):
    """Oracle: by hand: a judge that says nothing before, and its scores after."""
    parts = parts_of(finished)
    assert list(parts) == ["results", "curves", "completions", "samples", "lineage"]
    pair = data_of(finished, "pairs")[0]
    assert "1 = " in pair["prompt"] and [s["title"] for s in pair["sides"]] == ["before", "after"]
    assert verdict(pair["sides"][0]["text"]) is None and not pair["sides"][0]["right"]
    assert pair["sides"][1]["right"] == (verdict(pair["sides"][1]["text"]) == 1)
    after = measured(finished, "after")
    assert f"accuracy 0.0% → {after['accuracy'][0]:.1%} before" in parts["results"]


@pytest.mark.slow
def test_the_judge_rewards_completions_of_another_run(finished):
    """Oracle: the run's own verdicts on the held-out pairs: against the rejected answer as a reference, the
    chosen one earns 1 where it won in both orders.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    block = ModelRewardSettings(str(finished / "judge"), batch_size=8)
    models = load_model_rewards({"judged": block}, mesh)
    task = bilingual_examples("preferences", seed=0, **SIZES)
    examples = [{"question": e["question"], "answer": e["rejected"]} for e in task.held_out]
    with Rewards({"judged": 1.0}, models=models) as rewards:
        scores = rewards.score(examples, [e["chosen"] for e in task.held_out])
    after = measured(finished, "after")
    both = sum(after["accuracy_of_both"][:1]) * after["pairs"]
    settled = scores.total[~np.isnan(scores.total)]
    assert set(settled) <= {0.0, 0.5, 1.0} and len(settled) > 3
    assert round(both) <= np.sum(settled == 1.0) <= round(both + 6 * after["no_verdict"][0])


@pytest.mark.parametrize(
    "fields, wrong",
    [
        (dict(sequence_length=32), "config.sequence_length=32 is below the .* tokens"),
        (dict(data=dict(path="pairs.jsonl")), "config.data.path='pairs.jsonl': judgements"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(fields, wrong, tmp_path):
    """Oracle: by hand; nothing was pre-trained."""
    with pytest.raises(ValueError, match=wrong):
        run(tmp_path, **fields)
    assert not (tmp_path / "pretrain").exists()


def test_a_world_without_pairs_is_named_before_the_first_stage():
    """Oracle: the message, in place of a call of None."""
    context = SimpleNamespace(settings=None, once=lambda key, make: make())
    with pytest.raises(ValueError, match=f"{SUMS.name!r} has no pairs to train a judge on"):
        JudgedPairs(SUMS).describe(context)
