"""Losses of reward models, for pairs of responses or for labelled responses.

arXiv:2501.12948, section 3.1.
"""

import jax

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.reward import predict_rewards
from deepseek_jax.trees import PyTree


def pairwise_loss(
    chosen: jax.Array, rejected: jax.Array, weights: jax.Array, normalizer: jax.Array
) -> tuple[jax.Array, dict]:
    """Return Bradley and Terry's -log sigmoid(chosen - rejected), in nats per pair.

    Biometrika 39, 1952; as a reward model's loss, arXiv:2203.02155, eq. 1.

    Args:
        chosen: float32[p], the reward of the preferred response to each prompt.
        rejected: float32[p], the reward of the other response to the prompt.
        weights: float32[p], one per pair, 0 to ignore it.
        normalizer: float32[], the sum of weights over the whole global batch, so that micro-batches
            add up.

    Returns:
        (loss float32[], metrics). The metrics are
        - accuracy, the weighted share of pairs in which the chosen response has the higher reward
          (a tie is wrong);
        - margin, the weighted mean of chosen - rejected.
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
    """Return the binary cross-entropy between sigmoid(rewards) and safe, in nats per response.

    sigmoid(reward) is the probability that a response is safe. The paper calls the loss pointwise
    and prints no formula.

    Args:
        rewards: float32[b], logits.
        safe: float32[b], 1 or 0.
        weights: As in pairwise_loss, float32[b].
        normalizer: As in pairwise_loss.

    Returns:
        (loss float32[], metrics). The metrics are
        - accuracy, the weighted share of right predictions (a probability of 1/2 predicts unsafe);
        - safe_probability, the weighted mean of the probability.
    """
    # softplus(x) - y x is the cross-entropy of sigmoid(x) with y, without overflow
    nats_b = jax.nn.softplus(rewards) - safe * rewards
    loss = (weights * nats_b).sum() / normalizer
    return loss, {
        "accuracy": (weights * ((rewards > 0) == (safe > 0.5))).sum() / normalizer,
        "safe_probability": (weights * jax.nn.sigmoid(rewards)).sum() / normalizer,
    }


def reward_loss(config: ModelConfig, params: PyTree, batch: dict) -> tuple[jax.Array, dict]:
    """Return a reward model's loss: pairwise_loss for pairs, pointwise_loss for labelled responses.

    Args:
        config: From models.reward.reward_config.
        params: From models.reward.reward_params.
        batch: A dict of
            - tokens and segment_ids int32[p c t], with rows as in models.reward.predict_rewards. c
              is 2 for pairs, the chosen response first, and 1 for labelled responses;
            - weights float32[p] and normalizer float32[];
            - safe float32[p] if c is 1.

    Returns:
        (loss float32[], metrics). Metrics include routing if experts are routed.
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
    """Return the reward of every response in a batch of reward_loss.

    Returns:
        (float32[p c], models.Routing or None).
    """
    p, c, t = batch["tokens"].shape
    rows = (batch[name].reshape(p * c, t) for name in ("tokens", "segment_ids"))
    rewards_m, routing = predict_rewards(config, params, *rows)
    return rewards_m.reshape(p, c), routing
