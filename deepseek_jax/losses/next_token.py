"""Cross-entropy of the next token over packed documents, plus other losses of pre-training.

The others are V3's (balance, multi-token prediction) and V3.2's (indexer); V4 has all of them.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.losses.multi_token import multi_token_losses
from deepseek_jax.models.network import head_weight, run_layers
from deepseek_jax.models.network_config import Network
from deepseek_jax.ops.logprobs import token_logprobs
from deepseek_jax.parallel.tokens import over_tokens
from deepseek_jax.trees import PyTree


def next_token_loss(
    config: Network,
    params: PyTree,
    batch: dict,
    *,
    balance_weight: float = 0.0,
    mtp_weight: float | jax.Array | None = None,
) -> tuple[jax.Array, dict]:
    """Return the negative log-likelihood of the targets under loss_mask, in nats per token.

    Two weighted losses are added: the sequence-wise balance loss of every MoE layer
    (arXiv:2412.19437, eqs. 17-20), and multi-token prediction (eqs. 24-25). config.indexer_loss
    adds the loss of every layer's indexer (DeepSeek-V3.2-Exp, section 2.1). This loss has no
    weight: no other loss has a gradient in the indexer, and it has no gradient elsewhere.

    Args:
        batch: A dict of
            - tokens, targets, segment_ids and positions, int32[b t];
            - loss_mask bool[b t];
            - normalizer float32[], the number of True in loss_mask over the global batch, so that
              micro-batches add up;
            - num_tokens float32[], the number of real tokens of the global batch;
            - optionally loss_weights float32[b t], the weight of each target. normalizer is then
              their sum.
        balance_weight: Weight of each MoE layer's balance loss.
        mtp_weight: float or float32[], the weight of multi-token prediction. None leaves its
            modules out. They do not support loss_weights.

    Returns:
        (loss float32[], metrics). The metrics are
        - next_token_loss and entropy, float32[] in nats;
        - if experts are routed: balance_loss, averaged over layers, 1 for uniform routing; and
          routing, a dict from a key of params (moe_layers, mtp_0, ...) to models.moe.Routing;
        - with config.indexer_loss: indexer_loss, in nats per real token, averaged over layers;
        - with mtp_weight: mtp_loss in nats. Each module's sum over its targets is divided by
          normalizer, as published, and averaged over the modules.
    """
    assert mtp_weight is None or "loss_weights" not in batch
    logprobs_bt, entropy_bt, carried, reports = target_logprobs(config, params, batch)
    weight_bt = batch.get("loss_weights", 1.0)

    def mean(x_bt):
        return jnp.where(batch["loss_mask"], weight_bt * x_bt, 0.0).sum() / batch["normalizer"]

    loss = -mean(logprobs_bt)
    metrics = {"next_token_loss": loss, "entropy": mean(entropy_bt)}
    if mtp_weight is not None:
        losses, further = multi_token_losses(config, params, batch, carried)
        metrics["mtp_loss"] = sum(losses) / len(losses)
        # Eq. 25: lambda / D times the sum over D modules
        loss += mtp_weight * metrics["mtp_loss"]
        reports |= further
    if config.indexer_loss != "none":
        with_indexer = [r.indexer for r in reports.values() if r.indexer is not None]
        indexer_l = jnp.concatenate([indexer.reshape(-1) for indexer in with_indexer])
        indexer_l /= batch["num_tokens"]
        metrics["indexer_loss"] = indexer_l.mean()
        loss += indexer_l.sum()
    routings = {name: r.routing for name, r in reports.items() if r.routing is not None}
    if routings:
        balance_l = jnp.concatenate([r.balance.reshape(-1) for r in routings.values()])
        # sequence_balance leaves this division to its caller: num_tokens counts the global batch
        balance_l /= batch["num_tokens"]
        metrics["balance_loss"] = balance_l.mean()
        # The loss sums over layers. The metric is their mean, so that 1 still means uniform routing
        loss += balance_weight * balance_l.sum()
        metrics["routing"] = routings
    return loss, metrics


def parts_trained(config: Network, *, with_mtp: bool = False):
    """Return the parts in models.layers.PARTS that next_token_loss trains.

    Args:
        with_mtp: Whether the loss has an mtp_weight.
    """
    return ("mtp",) * with_mtp + ("indexer",) * (config.indexer_loss != "none")


def target_logprobs(config: Network, params, batch):
    """Score the targets of a batch: log-probabilities and entropies, in nats.

    Args:
        batch: As in next_token_loss.

    Returns:
        (logprobs float32[b t], entropy float32[b t], carried, reports). Values outside loss_mask are
        undefined. carried and reports are the results of models.network.run_layers.
    """
    hidden_btd, carried, reports = run_layers(config, params, batch)
    head = head_weight(config, params)
    logprobs_bt, entropy_bt = over_tokens(token_logprobs, hidden_btd, head, batch["targets"])
    return logprobs_bt, entropy_bt, carried, reports
