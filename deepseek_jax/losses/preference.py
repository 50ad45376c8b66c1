"""What reward models learn from (arXiv:2501.12948, section 3.1): pairs of responses, or labelled ones."""

import jax

from deepseek_jax.models.reward import predict_rewards


def pairwise_loss(chosen, rejected, weights, normalizer):
    """Bradley and Terry's -log sigmoid(chosen - rejected), in nats a pair (Biometrika 39, 1952; as a reward
    model's loss, arXiv:2203.02155, eq. 1).

    chosen, rejected: float32[p], the rewards of two responses to one prompt. weights: float32[p], how much a
    pair counts, 0 for not at all. normalizer: float32[], the sum of weights over the whole global batch, so
    that micro-batches add up.
    Returns (loss float32[], metrics): accuracy, the weighted share of pairs whose chosen response earns more,
    a tie being wrong, and margin, the mean of chosen - rejected.
    """
    margin_p = chosen - rejected
    loss = (weights * jax.nn.softplus(-margin_p)).sum() / normalizer
    return loss, {
        "accuracy": (weights * (margin_p > 0)).sum() / normalizer,
        "margin": (weights * margin_p).sum() / normalizer,
    }


def pointwise_loss(rewards, safe, weights, normalizer):
    """Binary cross-entropy of sigmoid(rewards), the probability that a response is safe, in nats a response.

    rewards: float32[b], logits. safe: float32[b], 1 or 0. weights, normalizer: as in pairwise_loss. The paper
    calls the loss pointwise and prints no form of it.
    Returns (loss float32[], metrics): accuracy, the weighted share on the right side of 1/2, which itself
    counts as unsafe, and safe_probability, its mean.
    """
    nats_b = jax.nn.softplus(rewards) - safe * rewards
    loss = (weights * nats_b).sum() / normalizer
    return loss, {
        "accuracy": (weights * ((rewards > 0) == (safe > 0.5))).sum() / normalizer,
        "safe_probability": (weights * jax.nn.sigmoid(rewards)).sum() / normalizer,
    }


def reward_loss(config, params, batch):
    """The loss of a reward model: pairwise_loss of pairs, pointwise_loss of labelled responses.

    config, params: of models.reward. batch: tokens and segment_ids int32[p c t], as of predict_rewards, with
    c 2, the chosen response first, or 1; weights float32[p]; normalizer float32[]; safe float32[p] where c is
    1. Returns (loss float32[], metrics), expert_load among them where experts are routed.
    """
    rewards_pc, routing = batch_rewards(config, params, batch)
    totals = batch["weights"], batch["normalizer"]
    if rewards_pc.shape[1] == 2:
        loss, metrics = pairwise_loss(rewards_pc[:, 0], rewards_pc[:, 1], *totals)
    else:
        loss, metrics = pointwise_loss(rewards_pc[:, 0], batch["safe"], *totals)
    if routing is not None:
        metrics["expert_load"] = {"moe_layers": routing.load}
    return loss, metrics


def batch_rewards(config, params, batch):
    """The reward of every response of a batch as of reward_loss: (float32[p c], models.Routing or None)."""
    p, c, t = batch["tokens"].shape
    rows = (batch[name].reshape(p * c, t) for name in ("tokens", "segment_ids"))
    rewards_m, routing = predict_rewards(config, params, *rows)
    return rewards_m.reshape(p, c), routing
