"""Cross-entropy of the next token, over packed documents."""

import jax.numpy as jnp

from deepseek_jax.models import head_weight, hidden_states
from deepseek_jax.ops.logprobs import token_logprobs


def next_token_loss(config, params, batch):
    """Negative log-likelihood, in nats a token, of the targets under loss_mask.

    batch: tokens, targets, segment_ids, positions int32[b t]; loss_mask bool[b t]; normalizer float32[],
    the number of True in loss_mask over the whole global batch, so that micro-batches add up.
    Returns (loss float32[], metrics): entropy float32[] in nats and, where experts are routed,
    expert_load float32[l e].
    """
    hidden_btd, load_le = hidden_states(
        config,
        params,
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
    )
    hidden_md = hidden_btd.reshape(-1, hidden_btd.shape[-1])
    targets_m, mask_m = batch["targets"].reshape(-1), batch["loss_mask"].reshape(-1)
    logprobs_m, entropy_m = token_logprobs(hidden_md, head_weight(config, params), targets_m)

    def mean(x_m):
        return jnp.where(mask_m, x_m, 0.0).sum() / batch["normalizer"]

    metrics = {"entropy": mean(entropy_m)}
    if load_le is not None:
        metrics["expert_load"] = load_le
    return -mean(logprobs_m), metrics
