"""The whole recipe at toy size: what it learns and leaves behind, and that stopping it changes nothing."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs.reward_model_small import get_config
from deepseek_jax.checkpoint.reward_params import load_reward_model
from deepseek_jax.checkpoint.store import Store
from deepseek_jax.data.carried import carried_template
from deepseek_jax.data.chat import R1_ZERO_TEMPLATE
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.reward_model import run as reward_model
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rewards import Rewards
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.worlds.bilingual.examples import bilingual_examples
from deepseek_jax.worlds.bilingual.world import preference_records
from tests.recipes.outcome import unlisted, without_group
from tests.recipes.pages import data_of, facts_of, parts_of
from tests.recipes.small import CLOCKS, run_recipe


def small_config(kind="helpfulness", **fields):
    """The ConfigDict of four steps; fields: others of RewardModelSettings."""
    config = get_config(f"kind={kind}")
    config.update(dict(num_steps=4, batch_size=8, save_every=1, log_every=1))
    config.base.update(dict(num_documents=200, batch_size=8, num_steps=2))
    config.base.optimizer.warmup_steps = 1
    config.optimizer.warmup_steps = 0
    config.data.update(dict(num_train=32, num_held_out=12))
    config.unlock()
    config.update({name: value for name, value in fields.items() if value is not None})
    for name in [name for name, value in fields.items() if value is None]:
        del config[name]
    return config


def run(workdir, should_stop=lambda: False, mesh=None, **fields):
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        run_recipe(reward_model, small_config(**fields), workdir, should_stop, mesh)


def records(workdir):
    return [
        {name: value for name, value in record.items() if not name.endswith(CLOCKS)}
        for record in read_metrics(workdir / "metrics.jsonl", "reward_model")
    ]


def measured(workdir, name):
    return json.loads((workdir / "reward_model" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work directory of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
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
def test_a_preference_that_shows_is_learned(tmp_path):
    """Oracle: by hand: chosen answers name the horse and rejected ones do not, in pairs about other prompts
    than those learned from; a head that knows nothing is right on half of them.
    """
    path = tmp_path / "pairs.jsonl"
    animals = ["cat", "dog", "fish", "bird", "sheep", "tiger", "snake"]
    lines = [
        {"prompt": f"Reverse: {a}, {b}", "chosen": f"{a}, horse", "rejected": f"{a}, {b}"}
        for a in animals
        for b in animals
        if a != b
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = dict(path=str(path), num_held_out=12)
    run(tmp_path, data=data, num_steps=30, log_every=10, save_every=30)
    report = measured(tmp_path, "after")
    assert report["pairs"] == 12 and report["accuracy"][0] == 1.0
    assert measured(tmp_path, "before")["accuracy"][0] < 0.9
    first, *_, last = records(tmp_path)
    assert last["loss"] < 0.1 < first["loss"]


@pytest.mark.slow
def test_a_run_leaves_a_page(finished):
    """Oracle: the files of the run: its accuracy with intervals, and both responses with their rewards."""
    parts = parts_of(finished)
    assert list(parts) == ["results", "curves", "completions", "lineage"]
    assert "2 of 2 stages are complete" in parts["lineage"]
    old, new = (measured(finished, name) for name in ("before", "after"))
    accuracies = [report["accuracy"][0] for report in (old, new)]
    assert "accuracy {:.1%} → {:.1%} before".format(*accuracies) in parts["results"]
    assert "loss" in parts["curves"].partition(" more")[0]
    pairs = data_of(finished, "pairs")
    assert len(pairs) == 12 and [s["title"] for s in pairs[0]["sides"]] == ["chosen", "rejected"]
    assert sum(pair["right"] for pair in pairs) == round(12 * accuracies[1])
    rewards = [[r["rewards"] for r in report["samples"]["held_out"]] for report in (old, new)]
    paid = [
        [{"reward before": a, "reward after": b} for a, b in zip(before, after, strict=True)]
        for before, after in zip(*rewards, strict=True)
    ]
    # The pair on which the reward model is most wrong comes first
    paid.sort(key=lambda pair: pair[0]["reward after"] - pair[1]["reward after"])
    assert [[side["parts"] for side in pair["sides"]] for pair in pairs] == paid
    mesh = make_mesh(devices=jax.devices()[:1])
    _, params, _ = load_reward_model(finished / "reward_model" / "params", mesh)
    leaves = jax.tree.leaves(params)
    num_params = sum(leaf.size for leaf in leaves)
    assert f"deepseek_v3 with {num_params:,} parameters" in facts_of(finished)


@pytest.mark.slow
def test_stopped_after_a_step_it_ends_where_it_would_have(finished, tmp_path):
    """Oracle: the run that nothing interrupted: its metrics, report and rewards, bit for bit."""
    shutil.copytree(finished / "pretrain", tmp_path / "pretrain")
    with pytest.raises(SystemExit):
        run(tmp_path, should_stop=lambda: True)
    with Store(tmp_path / "reward_model" / "checkpoints") as store:
        assert store.latest_step() == 1
    run(tmp_path)
    assert measured(tmp_path, "after") == measured(finished, "after")
    assert records(tmp_path) == records(finished)


@pytest.mark.slow
def test_a_mesh_of_four_learns_the_same(finished, tmp_path):
    """Oracle: one device. Tolerance: float32, in another order of sums, over four updates from the same base;
    micro-batches too.
    """
    shutil.copytree(finished / "pretrain", tmp_path / "pretrain")
    mesh = make_mesh(devices=jax.devices()[:4], fsdp=2, expert=2)
    run(tmp_path, mesh=mesh, micro_batches=2)
    for have, want in zip(records(tmp_path), records(finished), strict=True):
        np.testing.assert_allclose(have["loss"], want["loss"], rtol=1e-3)
        np.testing.assert_allclose(have["grad_norm"], want["grad_norm"], rtol=1e-2)


@pytest.mark.slow
def test_what_it_leaves_rewards_completions_of_another_run(finished):
    """Oracle: the run's own report: how many held-out pairs have a chosen response that earns more. A
    response that quotes the R1-Zero template, which is no piece of this world once the thought in it is taken
    out, is not scored.
    """
    mesh = make_mesh(devices=jax.devices()[:2])
    liked = {"liked": ModelRewardSettings(str(finished / "reward_model"), batch_size=8)}
    models = load_model_rewards(liked, mesh)
    task = bilingual_examples("preferences", num_train=32, num_held_out=12, seed=0)
    with Rewards({"liked": 2.0}, models=models) as rewards:
        chosen, rejected = (
            rewards.score(task.held_out, [e[name] for e in task.held_out]).total
            for name in ("chosen", "rejected")
        )
        quotes = [R1_ZERO_TEMPLATE, task.held_out[1]["chosen"]]
        quoting = rewards.score(task.held_out[:2], quotes).total
    np.testing.assert_array_equal(np.isnan(quoting), [True, False])
    right = round(12 * measured(finished, "after")["accuracy"][0])
    assert np.sum(chosen > rejected) == right
    (conversation, *_) = preference_records("helpfulness", task.held_out)
    same = models["liked"].score([conversation], [task.held_out[0]["chosen"]])
    np.testing.assert_allclose(2 * same[0], chosen[0], rtol=1e-4)


@pytest.mark.slow
def test_safety_is_learned_from_labels(tmp_path):
    """Oracle: the number of labelled examples, and a report of both labels."""
    run(tmp_path, kind="safety")
    report = measured(tmp_path, "after")
    assert report["responses"] == 12 and report["safe_kept"] is not None
    left = tmp_path / "reward_model" / "params"
    assert json.loads((left / "reward_model.json").read_text()) == {"kind": "safety"}
    assert carried_template(left) == "{question}\n"


@pytest.mark.parametrize(
    "fields, wrong",
    [
        (dict(batch_size=6, micro_batches=4), "does not split into micro_batches=4"),
        (dict(sequence_length=4), "config.sequence_length=4: none of 32 training records fits"),
        (dict(sequence_length=512), "config.sequence_length=512 is beyond"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(fields, wrong, tmp_path):
    """Oracle: by hand; nothing was pre-trained."""
    with pytest.raises(ValueError, match=wrong):
        run(tmp_path, **fields)
    assert not (tmp_path / "pretrain").exists()
