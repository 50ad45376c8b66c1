"""A reward model's measurement, and its plan, on a tiny model; recipes/reward_model's tests train one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.reward import predict_rewards, reward_config, reward_params
from deepseek_jax.recipes.kinds import prefer
from deepseek_jax.recipes.reward_model.settings import RewardModelSettings
from deepseek_jax.settings import build
from tests.recipes.reward_model.test_run import small_config
from tests.recipes.small import one_device
from tests.tiny import tiny_model

CONFIG, DECODER = tiny_model("gqa")


def settings_of(kind, **fields):
    config = small_config(kind, batch_size=2, sequence_length=32, **fields)
    return build(RewardModelSettings, config, "config")


def held_out(kind, n):
    """Records of random tokens, as with_ids makes them: responses of other lengths to one prompt."""
    rng = np.random.default_rng(0)
    lengths = rng.choice([5, 17], (n, 2 if kind == "helpfulness" else 1))
    return [
        {
            "messages": [{"role": "user", "content": f"question {i}"}],
            "responses": [f"response {k}" for k in range(len(row))],
            "ids": [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in row],
            "safe": bool(i % 2),
            "weight": 1.0,
        }
        for i, row in enumerate(lengths)
    ]


@pytest.mark.parametrize("kind", ["helpfulness", "safety"])
def test_held_out_records_are_scored_each_as_if_alone(kind):
    """Oracle: one forward pass for each response, without padding; shares of right answers by hand. Five
    records do not fill batches of two.
    """
    records, mesh = held_out(kind, 5), one_device()
    params = reward_params(CONFIG, DECODER, mesh, jax.random.key(1))
    model = reward_config(CONFIG)

    def alone(ids):
        tokens = jnp.array([ids])
        return float(predict_rewards(model, params, tokens, jnp.ones_like(tokens))[0][0])

    expected = np.array([[alone(ids) for ids in record["ids"]] for record in records])
    report = prefer._measure(model, settings_of(kind), records, mesh, params)
    samples = report["samples"]["held_out"]
    np.testing.assert_allclose([s["rewards"] for s in samples], expected, rtol=1e-4, atol=1e-5)
    assert [s["prompt"] for s in samples] == [f"question {i}" for i in range(5)]
    if kind == "helpfulness":
        right = expected[:, 0] > expected[:, 1]
    else:
        right = (expected[:, 0] > 0) == [record["safe"] for record in records]
    assert report["accuracy"][0] == pytest.approx(right.mean())


def test_a_plan_counts_what_an_adapter_leaves_out():
    """Oracle: by hand: a backward pass takes twice a forward pass, and frozen weights have no gradient; of a
    batch of two pairs each response is a row of 32 tokens.
    """
    settings, mesh = settings_of("helpfulness"), one_device()
    update, scores = prefer.reward_programs("", settings, CONFIG, mesh)
    assert (update.name, scores.name) == ("update", "scores")
    assert update.tokens == scores.tokens == 2 * 2 * 32
    assert update.flops == pytest.approx(3 * scores.flops)
    adapter = AdapterSettings(rank=2, alpha=4.0)
    adapted, _ = prefer.reward_programs("", settings, CONFIG, mesh, adapter)
    assert 2 * scores.flops < adapted.flops < 3 * scores.flops


def test_a_reward_model_has_a_head_of_one_number_in_place_of_the_vocabulary():
    """Oracle: the arrays of a reward model that is made."""
    params = reward_params(CONFIG, DECODER, one_device(), jax.random.key(1))
    stage = prefer.Prefer("reward", settings_of("helpfulness"), preferences=None)
    assert stage.num_params(CONFIG) == sum(leaf.size for leaf in jax.tree.leaves(params))
