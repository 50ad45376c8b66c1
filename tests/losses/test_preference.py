"""The losses of reward models, of arrays and of a model's batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.losses import preference
from deepseek_jax.losses.preference import pairwise_loss, pointwise_loss, reward_loss
from deepseek_jax.models.reward import init_reward_head, predict_rewards, reward_config
from deepseek_jax.training import optimizer
from deepseek_jax.training.optimizer import make_optimizer
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from tests.quick import others_slow
from tests.tiny import random_leaves, tiny_model

WEIGHTS = np.float32([1, 0.5, 2, 0])


def reward_model(kind):
    """(ModelConfig, params) of a reward model, every parameter random."""
    config, params = tiny_model(kind)
    config = reward_config(config)
    decoder = {n: x for n, x in params.items() if n != "head" and not n.startswith("mtp_")}
    rng = jax.random.key(1)
    return config, {
        "decoder": decoder,
        "head": nn.unbox(random_leaves(init_reward_head(config, rng), rng)),
    }


def pairs(rng, p=4, c=2, t=9):
    """A batch of reward_loss, rows of different lengths."""
    lengths = rng.integers(2, t + 1, (p, c, 1))
    segment_ids = (np.arange(t) < lengths).astype(np.int32)
    batch = {"tokens": rng.integers(1, 50, (p, c, t)).astype(np.int32), "segment_ids": segment_ids}
    batch |= {"weights": WEIGHTS, "normalizer": WEIGHTS.sum()}
    return batch | ({"safe": np.float32([1, 0, 0, 1])} if c == 1 else {})


def test_pairwise_loss_by_hand():
    """Oracle: by hand: -log sigmoid(log 3) = log(4 / 3) and -log sigmoid(0) = log 2, weighed 3 to 1, in one
    half of a batch whose weights add up to 8; a tie is wrong.
    """
    chosen, rejected = jnp.log(jnp.float32([6, 5])), jnp.log(jnp.float32([2, 5]))
    loss, metrics = pairwise_loss(chosen, rejected, jnp.float32([3, 1]), jnp.float32(8))
    np.testing.assert_allclose(loss, (3 * np.log(4 / 3) + np.log(2)) / 8, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], 3 / 8, rtol=1e-6)
    np.testing.assert_allclose(metrics["margin"], 3 * np.log(3) / 8, rtol=1e-6)


def test_pairwise_loss_and_gradient_are_torchs_logsigmoid():
    """Oracle: torch.nn.functional.logsigmoid in float64, margins of 200 included, where exp overflows in
    float32. Tolerance: float32's rounding.
    """
    chosen, rejected = np.float32([0.3, -1.0, 100, -100]), np.float32([0.1, 2.0, -100, 100])
    weights = np.float32([1, 0.5, 2, 1])
    loss, gradient = jax.value_and_grad(lambda x: pairwise_loss(x, rejected, weights, 4.5)[0])(
        jnp.asarray(chosen)
    )
    x = torch.tensor(chosen, dtype=torch.float64, requires_grad=True)
    logs = torch.nn.functional.logsigmoid(x - torch.tensor(rejected))
    wanted = -(torch.tensor(weights) * logs).sum() / 4.5
    wanted.backward()
    np.testing.assert_allclose(loss, wanted.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, x.grad, rtol=1e-5, atol=1e-7)


def test_pointwise_loss_and_gradient_are_torchs_bce_with_logits():
    """Oracle: torch's own in float64, logits of 90 included, for one half of a
    batch whose weights add up to 9. Tolerance: float32's rounding.
    """
    rewards, safe = np.float32([0.3, -90, 90, 0]), np.float32([1, 1, 0, 0])
    weights = np.float32([1, 0.5, 2, 1])
    (loss, metrics), gradient = jax.value_and_grad(
        lambda x: pointwise_loss(x, safe, weights, 9), has_aux=True
    )(jnp.asarray(rewards))
    x = torch.tensor(rewards, dtype=torch.float64, requires_grad=True)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        x, torch.tensor(safe, dtype=torch.float64), torch.tensor(weights), reduction="sum"
    )
    wanted = wanted / 9
    wanted.backward()
    np.testing.assert_allclose(loss, wanted.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, x.grad, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        metrics["accuracy"], (1 + 1) / 9, rtol=1e-6
    )  # the first and the last
    share = (weights / (1 + np.exp(-rewards.astype(np.float64)))).sum() / 9
    np.testing.assert_allclose(metrics["safe_probability"], share, rtol=1e-6)


@pytest.mark.parametrize("routing", [None, "routing"])
@pytest.mark.parametrize("responses", [1, 2])
def test_each_response_of_a_batch_is_a_row_with_a_reward(monkeypatch, responses, routing):
    """Oracle: the losses of rewards by hand: those of a row are the sum of its real tokens."""

    def predict(config, params, tokens, segment_ids):
        assert tokens.shape == segment_ids.shape == (4 * responses, 9)
        return jnp.float32((tokens * segment_ids).sum(1) / 100), routing

    monkeypatch.setattr(preference, "predict_rewards", predict)
    batch = pairs(np.random.default_rng(0), c=responses)
    rewards = jnp.float32((batch["tokens"] * batch["segment_ids"]).sum(-1) / 100)
    totals = WEIGHTS, WEIGHTS.sum()
    if responses == 2:
        wanted = pairwise_loss(rewards[:, 0], rewards[:, 1], *totals)
    else:
        wanted = pointwise_loss(rewards[:, 0], batch["safe"], *totals)
    loss, metrics = reward_loss(None, None, batch)
    assert metrics.pop("routing", None) == (routing and {"moe_layers": routing})
    assert loss == wanted[0] and metrics == wanted[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gqa", "mla_moe"])
@pytest.mark.parametrize("responses", others_slow([1, 2], 2))
def test_a_batch_is_scored_response_by_response(kind, responses):
    """Oracle: the same loss, of rewards of one response at a time, without padding. Tolerance: float32, in
    another order of sums.
    """
    config, params = reward_model(kind)
    batch = pairs(np.random.default_rng(0), c=responses)
    alone = np.zeros((4, responses), np.float32)
    for place in np.ndindex(alone.shape):
        tokens = batch["tokens"][place][None, : batch["segment_ids"][place].sum()]
        alone[place] = predict_rewards(config, params, tokens, np.ones_like(tokens))[0][0]
    loss, metrics = jax.jit(reward_loss, static_argnums=0)(config, params, batch)
    totals = WEIGHTS, WEIGHTS.sum()
    if responses == 2:
        wanted = pairwise_loss(alone[:, 0], alone[:, 1], *totals)
    else:
        wanted = pointwise_loss(alone[:, 0], batch["safe"], *totals)
    np.testing.assert_allclose(loss, wanted[0], rtol=2e-5)
    assert ("routing" in metrics) == (kind == "mla_moe")


@pytest.mark.slow
def test_micro_batches_make_the_same_update_and_decay_leaves_the_bias_alone(monkeypatch):
    """Oracle: the update from the whole batch, and by hand: a pair's two rewards share the head's bias, and
    decay leaves it alone, so that it stays as it was, and the weight does not. Tolerance: float32, gradients
    summed in another order; an eps of 1 keeps Adam from turning their rounding into signs.
    """
    config, params = reward_model("mla_moe")
    batch = pairs(np.random.default_rng(1))
    options = dict(b1=0.9, b2=0.95, weight_decay=0.5, max_grad_norm=1e9)
    monkeypatch.setattr(optimizer, "EPS", 1.0)
    tx = make_optimizer(lambda step: 0.1, **options)
    states = []
    for micro_batches in (1, 2):
        step = make_train_step(
            lambda params, batch, rng: reward_loss(config, params, batch),
            tx,
            micro_batches=micro_batches,
        )
        state, metrics = jax.jit(step)(TrainState.create(params, tx), batch, jax.random.key(0))
        assert metrics["nonfinite"] == 0
        states.append(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *states)
    head = states[0]["head"]
    np.testing.assert_allclose(head["bias"], params["head"]["bias"], atol=1e-7)
    assert np.abs(head["weight"] - params["head"]["weight"]).max() > 1e-3
    bias = params["decoder"]["moe_layers"]["ffn"]["router_bias"]
    np.testing.assert_array_equal(states[0]["decoder"]["moe_layers"]["ffn"]["router_bias"], bias)
