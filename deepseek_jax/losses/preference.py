"""Losses of reward models (arXiv:2501.12948, section 3.1): of pairs of responses or of labelled responses."""

from typing import Any

import jax

from deepseek_jax.models import ModelConfig
from deepseek_jax.models.reward import predict_rewards


def pairwise_loss(
    chosen: jax.Array, rejected: jax.Array, weights: jax.Array, normalizer: jax.Array
) -> tuple[jax.Array, dict]:
    """Bradley and Terry's -log sigmoid(chosen - rejected), in nats a pair (Biometrika 39, 1952; as a reward
    model's loss, arXiv:2203.02155, eq. 1).

    chosen, rejected: float32[p], the rewards of two responses to one prompt. weights: float32[p], one a pair,
    0 to ignore it. normalizer: float32[], the sum of weights over the whole global batch, so that
    micro-batches add up.
    Returns (loss float32[], metrics): accuracy, the weighted share of pairs whose chosen response has the
    higher reward (a tie is wrong), and margin, the weighted mean of chosen - rejected.
    """
    margin_p = chosen - rejected
    # softplus(-x) is -log sigmoid(x), without overflow
    loss = (weights * jax.nn.softplus(-margin_p)).sum() / normalizer
    return loss, {
        "accuracy": (weights * (margin_p > 0)).sum() / normalizer,
        "margin": (weights * margin_p).sum() / normalizer,
    }


def pointwise_loss(
    rewards: jax.Array, safe: jax.Array, weights: jax.Array, normalizer: jax.Array
) -> tuple[jax.Array, dict]:
    """Binary cross-entropy of sigmoid(rewards), the probability that a response is safe, in nats a response.

    rewards: float32[b], logits. safe: float32[b], 1 or 0. weights, normalizer: as in pairwise_loss. The paper
    calls the loss pointwise and prints no formula.
    Returns (loss float32[], metrics): accuracy, the weighted share of right predictions (a probability of 1/2
    predicts unsafe), and safe_probability, the weighted mean of the probability.
    """
    # softplus(x) - y x is the cross-entropy of sigmoid(x) with y, without overflow
    nats_b = jax.nn.softplus(rewards) - safe * rewards
    loss = (weights * nats_b).sum() / normalizer
    return loss, {
        "accuracy": (weights * ((rewards > 0) == (safe > 0.5))).sum() / normalizer,
        "safe_probability": (weights * jax.nn.sigmoid(rewards)).sum() / normalizer,
    }


def reward_loss(config: ModelConfig, params: Any, batch: dict) -> tuple[jax.Array, dict]:
    """The loss of a reward model: pairwise_loss for pairs, pointwise_loss for labelled responses.

    config, params: see models.reward. batch: tokens and segment_ids int32[p c t], each row as in
    predict_rewards. c is 2 for pairs, the chosen response first, or 1 for labelled responses; weights
    float32[p]; normalizer float32[]; safe float32[p] if c is 1. Returns (loss float32[], metrics), with
    routing where experts are routed.
    """
    rewards_pc, routing = batch_rewards(config, params, batch)
    totals = batch["weights"], batch["normalizer"]
    if rewards_pc.shape[1] == 2:
        loss, metrics = pairwise_loss(rewards_pc[:, 0], rewards_pc[:, 1], *totals)
    else:
        loss, metrics = pointwise_loss(rewards_pc[:, 0], batch["safe"], *totals)
    if routing is not None:
        metrics["routing"] = {"moe_layers": routing}
    return loss, metrics


def batch_rewards(config: ModelConfig, params, batch):
    """The reward of every response in a batch of reward_loss: (float32[p c], models.Routing or None)."""
    p, c, t = batch["tokens"].shape
    rows = (batch[name].reshape(p * c, t) for name in ("tokens", "segment_ids"))
    rewards_m, routing = predict_rewards(config, params, *rows)
    return rewards_m.reshape(p, c), routing
