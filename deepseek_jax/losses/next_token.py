"""Cross-entropy of the next token, over packed documents, with what V3's pre-training adds to it."""

import jax.numpy as jnp

from deepseek_jax.losses.multi_token import multi_token_losses
from deepseek_jax.models import head_weight, hidden_states
from deepseek_jax.ops.logprobs import token_logprobs
from deepseek_jax.parallel.tokens import over_tokens


def next_token_loss(config, params, batch, *, balance_weight=0.0, mtp_weight=None):
    """Negative log-likelihood, in nats a token, of the targets under loss_mask, plus the weighted rest:
    the sequence-wise balance loss of every MoE layer (arXiv:2412.19437, eqs. 17-20) and multi-token
    prediction (eqs. 24-25).

    batch: tokens, targets, segment_ids, positions int32[b t]; loss_mask bool[b t]; normalizer and num_tokens
    float32[], the numbers of True in loss_mask and of real tokens over the whole global batch, so that
    micro-batches add up; optionally loss_weights float32[b t], how much each target counts, and then
    normalizer is their sum. mtp_weight: float or float32[]; None leaves the modules out, and they know
    nothing of loss_weights.
    Returns (loss float32[], metrics): next_token_loss and entropy, float32[] in nats; where experts are
    routed, balance_loss, 1 being uniform, averaged over layers, and expert_load, a dict from a key of params
    to float32[l e] (moe_layers) or float32[e] (mtp_0, ...); with mtp_weight, mtp_loss in nats, averaged over
    the modules, each summed over its targets and divided by normalizer as published.
    """
    assert mtp_weight is None or "loss_weights" not in batch
    logprobs_bt, entropy_bt, hidden_btd, routing = target_logprobs(config, params, batch)
    weight_bt = batch.get("loss_weights", 1.0)

    def mean(x_bt):
        return jnp.where(batch["loss_mask"], weight_bt * x_bt, 0.0).sum() / batch["normalizer"]

    loss = -mean(logprobs_bt)
    metrics = {"next_token_loss": loss, "entropy": mean(entropy_bt)}
    routings = {} if routing is None else {"moe_layers": routing}
    if mtp_weight is not None:
        losses, further = multi_token_losses(config, params, batch, hidden_btd)
        metrics["mtp_loss"] = sum(losses) / len(losses)
        loss += mtp_weight * metrics["mtp_loss"]
        routings |= further
    if routings:
        balance_l = jnp.concatenate([r.balance.reshape(-1) for r in routings.values()])
        balance_l /= batch["num_tokens"]
        metrics["balance_loss"] = balance_l.mean()
        loss += balance_weight * balance_l.sum()
        metrics["expert_load"] = {name: r.load for name, r in routings.items()}
    return loss, metrics


def target_logprobs(config, params, batch):
    """(logprobs, entropy, hidden, routing) of the targets, float32[b t] in nats twice, and what hidden_states
    gives. batch: as in next_token_loss; what stands outside loss_mask means nothing.
    """
    hidden_btd, routing = hidden_states(
        config,
        params,
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
    )
    head = head_weight(config, params)
    logprobs_bt, entropy_bt = over_tokens(token_logprobs, hidden_btd, head, batch["targets"])
    return logprobs_bt, entropy_bt, hidden_btd, routing
