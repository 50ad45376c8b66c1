"""The loss that trains the lightning indexer to score keys as attention weighs them.

DeepSeek-V3.2-Exp, section 2.1; arXiv:2512.02556.
"""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.ops.attention import MASKED
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.pallas import index_loss as pallas
from deepseek_jax.ops.platform import choose, size_of
from deepseek_jax.ops.selection import index_scores, over_query_blocks, seen, unpacked
from deepseek_jax.ops.window_attention import (
    Keys,
    attended_entries,
    attention_weights,
    by_query_blocks,
)


def index_loss(
    index,
    attention,
    segments_bt,
    segments_bs,
    selected,
    *,
    first,
    scale: float,
    implementation: str | None = None,
):
    """Return KL(p_t || softmax(I_t)) of each token, in nats, 0 on padding: float32[b t].

    p_t is the mean over heads of attention's probabilities, and I_t are the index scores. Both are
    over the keys that a query sees (dense) or, with `selected`, over the keys that it selected
    (sparse). p_t gets no gradient: the model learns only from its other losses, and the scores only
    from this one.

    Scores are in memory for one block of queries at a time. For a long row, attention's scores are
    in memory for one head at a time. A TPU's kernels have no scores in memory.

    Args:
        index: (q [b t j y], k [b s y], w [b t j]), see ops.selection.index_scores.
        attention: (q [b t h x], k [b s h x]).
        segments_bt: int32, segments of the queries, 0 on padding.
        segments_bs: int32, segments of the keys, 0 on padding.
        selected: uint8[b t z], bits of ops.selection.select_rows, or None.
        first: int32[], index of query 0 in its row.
        scale: Factor of attention's scores.
        implementation: "plain", or the Pallas kernels, "kernel", or their emulation, "interpreted",
            which take no selection. None is the choice of ops.platform.

    Raises:
        ValueError: If this machine lacks the implementation.
    """
    at_t = first + jnp.arange(segments_bt.shape[1])
    compute = choose(
        "index_loss",
        implementation if selected is None else "plain",
        lambda: pallas.takes(index, attention),
        plain=functools.partial(_loss_by_blocks, selected=selected),
        kernel=pallas.index_loss,
        interpreted=functools.partial(pallas.index_loss, interpret=True),
    )
    kl_bt = compute(index, attention, segments_bt, segments_bs, at_t, scale)
    return jnp.where(segments_bt > 0, kl_bt, 0.0)


def _loss_by_blocks(index, attention, segments_bt, segments_bs, at_t, scale, selected):
    (q_btjy, k_bsy, w_btj), (q_bthx, k_bshx) = index, jax.lax.stop_gradient(attention)

    # The gradient recomputes the block's scores
    @jax.checkpoint
    def one_block(block):
        q_btjy, w_btj, q_bthx, segments_bt, *bits, at_t = block
        mask_bts = seen(segments_bt, segments_bs, at_t)
        if bits:
            mask_bts &= unpacked(bits[0], k_bsy.shape[1])
        share_bts = _shares_of_attention(q_bthx, k_bshx, mask_bts, scale)
        return divergence(share_bts, index_scores(q_btjy, k_bsy, w_btj), mask_bts)

    bits = () if selected is None else (selected,)
    arrays = q_btjy, w_btj, q_bthx, segments_bt, *bits
    return over_query_blocks(one_block, k_bsy.shape[1], at_t, *arrays)[:, : len(at_t)]


def entry_loss(index, q_bthx, keys: Keys, *, window: int, scale: float, first=0):
    """Return KL(p_t || softmax(I_t)) over the compressed entries of each token: float32[b t].

    As `index_loss` (arXiv:2606.19348, section 2.3), but p_t is over entries alone: attention's
    probabilities of the entries that a query sees, or selected, summed over heads and divided by
    their sum. 0 where a token sees no entry.

    Args:
        index: (q [b t j y], k [b w y], w [b t j]), see ops.selection.index_scores.
        q_bthx: The queries of attention, which get no gradient.
        keys: What they attend to, with entries; it gets no gradient.
        window: As in ops.window_attention.attend_window.
        scale: As there.
        first: As there.
    """
    (q_btjy, k_bwy, w_btj), (q_bthx, keys) = index, jax.lax.stop_gradient((q_bthx, keys))
    entries = keys.entries
    assert entries is not None, "an indexer scores entries"

    # The gradient recomputes the block's scores
    @jax.checkpoint
    def one_block(block):
        q_btjy, w_btj, *queries = block
        share_btw = attention_weights(keys, queries, window=window, scale=scale)[2].sum(1)
        total_bt1 = share_btw.sum(-1, keepdims=True)
        share_btw /= jnp.where(total_bt1 > 0, total_bt1, 1)
        mask_btw = attended_entries(entries, *queries[1:])
        kl_bt = divergence(share_btw, index_scores(q_btjy, k_bwy, w_btj), mask_btw)
        return jnp.where((total_bt1[..., 0] > 0) & (queries[1] > 0), kl_bt, 0.0)

    return by_query_blocks(one_block, keys, first, q_btjy, w_btj, q_bthx)


def divergence(share_bts, scores_bts, mask_bts):
    """Return KL(share || softmax of the scores where mask is True): float32[b t]."""
    logs_bts = jax.nn.log_softmax(jnp.where(mask_bts, scores_bts, MASKED), axis=-1)
    cross_bts = jnp.where(mask_bts, share_bts * logs_bts, 0.0)
    return (jax.scipy.special.xlogy(share_bts, share_bts) - cross_bts).sum(-1)


def _shares_of_attention(q_bthx, k_bshx, mask_bts, scale):
    """Return the mean over heads of softmax(q . k scale) where mask_bts: float32[b t s]."""

    def of_heads(q_bthx, k_bshx):
        scores_bhts = dot("bthx,bshx->bhts", q_bthx, k_bshx, jnp.float32) * scale
        weights_bhts = jax.nn.softmax(jnp.where(mask_bts[:, None], scores_bhts, MASKED), axis=-1)
        return weights_bhts.sum(1)

    h = q_bthx.shape[2]
    if k_bshx.shape[1] <= size_of("longest_whole_row"):
        shares_bts = of_heads(q_bthx, k_bshx)
    else:

        def add(total_bts, one):
            q_btx, k_bsx = one
            return total_bts + of_heads(q_btx[:, :, None], k_bsx[:, :, None]), None

        by_head = tuple(jnp.moveaxis(a, 2, 0) for a in (q_bthx, k_bshx))
        shares_bts, _ = jax.lax.scan(add, jnp.zeros(mask_bts.shape, jnp.float32), by_head)
    # A query that sees no key has equal weights on masked keys
    return jnp.where(mask_bts, shares_bts / h, 0.0)
