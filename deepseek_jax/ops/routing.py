"""The choice of each token's experts, and the bias that balances them without an auxiliary loss."""

import jax
import jax.numpy as jnp

# Stands for each expert of a token if no choice was recorded for the token, see with_recorded
FREE = 2**16 - 1


def route(
    logits,
    bias,
    *,
    num_experts_per_tok: int,
    n_group: int = 1,
    topk_group: int = 1,
    scoring_func: str = "sigmoid",
    norm_topk_prob: bool = True,
    routed_scaling_factor: float = 1.0,
):
    """Choose each token's experts in its best groups, and weigh them.

    arXiv:2412.19437, eqs. 13-16; arXiv:2405.04434, section 2.2.

    Args:
        logits: float32[m e].
        bias: float32[e], added for the choice and not for the weights, so it gets no gradient. None
            if the router has no bias (DeepSeek-V2).
        scoring_func: See `affinities`. Under "sigmoid" (V3) a group's score is the sum of its best
            two experts, else its best expert.
        norm_topk_prob: Scale a token's weights to sum to 1 before they are multiplied by
            routed_scaling_factor.
        routed_scaling_factor: A factor of the released code, not of the equations.

    Returns:
        experts: int32[m a], best first, and weights: float32[m a].
    """
    choice_me = affinities(logits, scoring_func)
    choice_me = choice_me if bias is None else choice_me + jax.lax.stop_gradient(bias)
    if n_group > 1:
        # x: the experts of one group
        choice_mgx = choice_me.reshape(len(logits), n_group, -1)
        num_best = 2 if scoring_func == "sigmoid" else 1
        group_mg = jnp.where(_ranks(choice_mgx) < num_best, choice_mgx, 0).sum(-1)
        kept_mg = _ranks(group_mg) < topk_group
        # -inf, not 0: the bias can move an expert of an open group below 0, and an expert of a
        # closed group would win
        choice_me = jnp.where(kept_mg[..., None], choice_mgx, -jnp.inf).reshape(logits.shape)
    experts_ma = jax.lax.top_k(jax.lax.stop_gradient(choice_me), num_experts_per_tok)[1]
    weights_ma = expert_weights(
        logits,
        experts_ma,
        scoring_func=scoring_func,
        norm_topk_prob=norm_topk_prob,
        routed_scaling_factor=routed_scaling_factor,
    )
    return experts_ma, weights_ma


def route_by_table(logits, tokens, table, *, scoring_func: str, routed_scaling_factor: float = 1.0):
    """Look up each token's experts in a table, and weigh them by the router (arXiv:2606.19348).

    Args:
        logits: float32[... e].
        tokens: int32[...].
        table: [v a], the experts of each token of the vocabulary; any dtype, without a gradient.
        scoring_func: As in `expert_weights`.
        routed_scaling_factor: As in `expert_weights`.

    Returns:
        experts: int32[... a], and weights: float32[... a].
    """
    experts = jnp.take(jax.lax.stop_gradient(table), tokens, axis=0).astype(jnp.int32)
    weights = expert_weights(
        logits, experts, scoring_func=scoring_func, routed_scaling_factor=routed_scaling_factor
    )
    return experts, weights


def _ranks(scores):
    """Return each score's place along the last axis, 0 for the largest.

    The first of equal scores comes first, as in top_k. Comparing each score with each takes TPUs
    less time than sorting a few.
    """
    number_x = jnp.arange(scores.shape[-1])
    own_score, other_score = scores[..., None], scores[..., None, :]
    is_ahead = (other_score > own_score) | (
        (other_score == own_score) & (number_x < number_x[:, None])
    )
    return is_ahead.sum(-1)


def expert_weights(
    logits,
    experts,
    *,
    scoring_func: str = "sigmoid",
    norm_topk_prob: bool = True,
    routed_scaling_factor: float = 1.0,
):
    """Weigh chosen experts (arXiv:2412.19437, eqs. 13 and 16): float32[... a].

    The bias only chooses experts. Their weights are the affinities without it. Options are as in
    `route`.

    Args:
        logits: float32[... e].
        experts: int32[... a].
    """
    # A mask and a sum, because TPUs gather single numbers slowly
    is_chosen = experts[..., None] == jnp.arange(logits.shape[-1])
    if scoring_func == "sqrtsoftplus" and norm_topk_prob:
        # A table may choose experts whose affinities all underflow: their quotients do not, in logarithms
        logs = jnp.where(is_chosen, _log_softplus(logits)[..., None, :] / 2, 0).sum(-1)
        return jax.nn.softmax(logs, axis=-1) * routed_scaling_factor
    weights = jnp.where(is_chosen, affinities(logits, scoring_func)[..., None, :], 0).sum(-1)
    if norm_topk_prob:
        # 1e-20, as in Hugging Face's code: the sigmoids of all chosen experts may underflow to 0
        weights /= weights.sum(-1, keepdims=True) + 1e-20
    return weights * routed_scaling_factor


def with_recorded(experts, recorded):
    """Replace a token's experts by the experts that the sampler recorded for it, if any.

    Keep routing, arXiv:2512.02556, section 3.1.

    Args:
        experts: int32[... a], the router's choice.
        recorded: uint16[... a], the recorded choice. A token without one has FREE in every place.
    """
    return jnp.where(recorded == FREE, experts, recorded.astype(jnp.int32))


def affinities(logits, scoring_func: str):
    """Return token-to-expert scores float32[... e] of logits.

    Args:
        logits: float32[... e].
        scoring_func: "sigmoid" (V3), "softmax" (V2), or "sqrtsoftplus" (V4), sqrt(log(1 + e^x)).
    """
    if scoring_func == "sqrtsoftplus":
        # Not sqrt: where softplus underflows, its derivative is 0 / 0
        return jnp.exp(_log_softplus(logits) / 2)
    return (jax.nn.sigmoid if scoring_func == "sigmoid" else jax.nn.softmax)(logits)


def _log_softplus(logits):
    """Return log(log(1 + e^x)), finite with a finite derivative for every float32."""
    # Below -20, log(1 + e^x) is e^x to float32's last bit. The inner `where` gives the other branch no
    # logits at which its derivative is not finite
    is_low = logits < -20
    return jnp.where(is_low, logits, jnp.log(jax.nn.softplus(jnp.where(is_low, 0.0, logits))))


def expert_load(experts, n_routed_experts, counted=None):
    """Count the tokens of each expert: experts int32[... a] -> float32[e].

    Args:
        experts: int32[... a].
        counted: bool[...], the tokens to count. None counts all.
    """
    one_hot = jax.nn.one_hot(experts, n_routed_experts)
    if counted is not None:
        one_hot = one_hot * counted[..., None, None]
    return one_hot.sum(range(one_hot.ndim - 1))


def sequence_balance(affinity, segment_ids, *, num_experts_per_tok):
    """Return the sequence-wise balance loss (arXiv:2412.19437, eqs. 17-20) without its weight.

    A sequence is a document. As printed in the paper, f counts each token's best experts by
    affinity only, without the bias and the groups. Only P has a gradient.

    Args:
        affinity: float32[b t e], from `affinities`.
        segment_ids: int32[b t], 0 on padding, one run of equal ids for each packed document.

    Returns:
        float32[], the sum over documents of length * sum_i(f_i * P_i). Divided by the number of
        real tokens, it is the mean over documents, weighted by length. This mean is 1 for a
        perfectly uniform router.
    """
    b, t, e = affinity.shape
    best_bta = jax.lax.top_k(jax.lax.stop_gradient(affinity), num_experts_per_tok)[1]
    chosen_bte = jax.nn.one_hot(best_bta, e).sum(2)
    share_bte = affinity / affinity.sum(-1, keepdims=True)
    before_bt = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    # Number the documents of each row from 1. Padding gets an index out of range, which segment_sum
    # drops
    document_bt = jnp.cumsum(segment_ids != before_bt, axis=1)
    document_bt = jnp.where(segment_ids > 0, document_bt, t + 1)

    def per_document(x_btz):
        return jax.vmap(lambda x, i: jax.ops.segment_sum(x, i, t + 1))(x_btz, document_bt)

    # Letter n: document. Unused document numbers get length 1: 0 / 0 would make the sum NaN
    length_bn1 = jnp.maximum(per_document(jnp.ones((b, t, 1))), 1)
    # length * f * P: f and P (eqs. 18 and 20) each divide by the length, and one division cancels
    products_bne = per_document(chosen_bte) * per_document(share_bte) / length_bn1
    return products_bne.sum() * e / num_experts_per_tok


def updated_bias(bias, load, *, speed: float):
    """Move each expert's bias by `speed`: down if it is overloaded, up if it is underloaded.

    arXiv:2412.19437, section 2.1.2.

    Args:
        bias: float32[... e].
        load: float32[... e], tokens per expert over the whole global batch.
    """
    return bias + speed * jnp.sign(load.mean(-1, keepdims=True) - load)


def load_metrics(loads):
    """Measure how evenly the experts of each layer are used.

    Args:
        loads: {key of params: Routing.load}. A load float32[l e] stacks layers.

    Returns:
        Dict of float32[]. LAYER stands for moe_0, moe_1 and so on in a stack, else
        for the key of params, as mtp_0 and layers_0.
        - max_vio/LAYER: MaxVio (arXiv:2408.15664), max(load) / mean(load) - 1, 0 in perfect
          balance.
        - max_vio: the mean over all layers.
        - load_entropy/LAYER: entropy of the load in nats, log(e) in perfect balance.
    """
    load_by_layer: dict[str, jax.Array] = {}
    for name, load in loads.items():
        stack_loads = {f"moe_{i}": load_e for i, load_e in enumerate(load)}
        load_by_layer |= stack_loads if load.ndim == 2 else {name: load}
    violations = {f"max_vio/{name}": x.max() / x.mean() - 1 for name, x in load_by_layer.items()}
    entropies = {f"load_entropy/{name}": _entropy(x / x.sum()) for name, x in load_by_layer.items()}
    mean_violation = (
        {"max_vio": sum(violations.values()) / len(violations)} if load_by_layer else {}
    )
    return mean_violation | violations | entropies


def _entropy(share_e):
    return -jax.scipy.special.xlogy(share_e, share_e).sum()
