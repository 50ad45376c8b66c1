"""Attention over a sliding window and compressed entries in one softmax, with a sink.

arXiv:2606.19348, section 2.3. One vector of a token is its key and its value, for all heads.

More dimension letters: w entry (ops.compress), x width of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.ops.attention import MASKED
from deepseek_jax.ops.compress import Windows, seen_entries
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.selection import index_scores, over_query_blocks, packed, select, unpacked


class Entries(NamedTuple):
    """The compressed keys of a layer.

    Attributes:
        kv: [b w x].
        windows: The ops.compress.Windows of these entries.
        selected: uint8[b t z], the bits of the entries that each query selected, see
            `select_entries`; None if queries attend to all entries that they see.
    """

    kv: jax.Array
    windows: Windows
    selected: jax.Array | None


class Keys(NamedTuple):
    """Tokens, entries and sink that the queries of a layer attend to.

    Attributes:
        kv: [b s x], of the tokens.
        segments: int32[b s], 0 on padding.
        sink: float32[h], a logit of each head in every softmax, which has no value.
        entries: None in a layer without a compressor.
    """

    kv: jax.Array
    segments: jax.Array
    sink: jax.Array
    entries: Entries | None


def attend_window(q_bthx, keys: Keys, *, window: int, scale: float, first=0):
    """Attend to the latest `window` tokens of a document and to its entries: [b t h x].

    Scores and softmax are float32. Long rows work through one block of queries at a time, with the
    tokens that the block sees, and compute it again for the gradient.

    Args:
        q_bthx: Queries.
        keys: What they attend to.
        window: The number of tokens that a query sees, with itself.
        scale: Factor of the scores.
        first: int32[], index of query 0 in its row.
    """

    @jax.checkpoint
    def one_block(block):
        kv_bsx, weights_bhts, weights_bhtw = attention_weights(
            keys, block, window=window, scale=scale
        )
        out_bthx = _weighted(weights_bhts, kv_bsx)
        if keys.entries is None:
            return out_bthx
        return out_bthx + _weighted(weights_bhtw, keys.entries.kv)

    return by_query_blocks(one_block, keys, first, q_bthx)


def by_query_blocks(one_block, keys: Keys, first, *arrays):
    """Apply a function to blocks of queries, see ops.selection.over_query_blocks.

    Args:
        one_block: A function of (*arrays, segments int32[b t], bits of entries.selected if there are
            any, at int32[t], the indices of the queries in their rows).
        keys: What the queries attend to.
        first: int32[], index of query 0 in its row.
        *arrays: [b t ...] each.

    Returns:
        The results, [b t ...].
    """
    t, s = arrays[0].shape[1], keys.kv.shape[1]
    bits = () if keys.entries is None or keys.entries.selected is None else (keys.entries.selected,)
    # Queries past the row are padding, as parallel.context pads them
    segments_bs = jnp.pad(keys.segments, ((0, 0), (0, t)))
    segments_bt = jax.lax.dynamic_slice_in_dim(segments_bs, first, t, axis=1)
    blocks = over_query_blocks(one_block, s, first + jnp.arange(t), *arrays, segments_bt, *bits)
    return blocks[:, :t]


def attention_weights(keys: Keys, block, *, window: int, scale: float):
    """Compute the softmax of a block of queries.

    Args:
        keys: What the queries attend to.
        block: The arguments of by_query_blocks' function, with q [b t h x] in place of arrays.
        window: As in attend_window.
        scale: As in attend_window.

    Returns:
        The part of keys.kv that has the windows of these queries, [b s x]; the weights of its
        tokens, float32[b h t s]; and the weights of the entries, float32[b h t w].
    """
    q_bthx, segments_bt, *bits, at_t = block
    # The block's first query sees the earliest token
    num_keys = min(len(at_t) + window - 1, keys.kv.shape[1])
    first = jnp.clip(at_t[0] - window + 1, 0, keys.kv.shape[1] - num_keys)
    kv_bsx, segments_bs = (
        jax.lax.dynamic_slice_in_dim(array, first, num_keys, axis=1)
        for array in (keys.kv, keys.segments)
    )
    age_ts = at_t[:, None] - (first + jnp.arange(num_keys))
    is_seen_bts = (age_ts >= 0) & (age_ts < window)
    is_seen_bts &= segments_bt[:, :, None] == segments_bs[:, None]
    scores = [_scores(q_bthx, kv_bsx, is_seen_bts, scale)]
    if keys.entries is not None:
        is_attended_btw = attended_entries(keys.entries, segments_bt, *bits, at_t)
        scores.append(_scores(q_bthx, keys.entries.kv, is_attended_btw, scale))
    sink_bht1 = jnp.broadcast_to(keys.sink[:, None, None], (*scores[0].shape[:3], 1))
    weights = jax.nn.softmax(jnp.concatenate([*scores, sink_bht1], axis=-1), axis=-1)[..., :-1]
    return kv_bsx, *jnp.split(weights, [num_keys], axis=-1)


def _scores(q_bthx, kv_bsx, is_seen_bts, scale):
    b, t, h, x = q_bthx.shape
    # m: heads and queries. All heads read one key, so that they are rows of one product
    q_bmx = jnp.moveaxis(q_bthx, 2, 1).reshape(b, h * t, x)
    scores_bms = dot("bmx,bsx->bms", q_bmx, kv_bsx, jnp.float32) * scale
    return jnp.where(is_seen_bts[:, None], scores_bms.reshape(b, h, t, -1), MASKED)


def _weighted(weights_bhts, kv_bsx):
    """Sum keys by weight, in their dtype: [b t h x]."""
    b, h, t, s = weights_bhts.shape
    weights_bms = weights_bhts.reshape(b, h * t, s).astype(kv_bsx.dtype)
    out_bmx = dot("bms,bsx->bmx", weights_bms, kv_bsx)
    return jnp.moveaxis(out_bmx.reshape(b, h, t, -1), 1, 2)


def attended_entries(entries: Entries, segments_bt, *bits_and_at):
    """Return the entries that queries see, and selected if there are bits: bool[b t w]."""
    *bits, at_t = bits_and_at
    is_seen_btw = seen_entries(segments_bt, at_t, entries.windows)
    return is_seen_btw & unpacked(bits[0], entries.kv.shape[1]) if bits else is_seen_btw


def select_entries(
    q_btjy,
    k_bwy,
    w_btj,
    segments_bt,
    windows: Windows,
    index_topk: int,
    *,
    first=0,
    scores=index_scores,
):
    """Select the entries of each query, as `packed` bits uint8[b t z]; None if it selects all.

    The first three arguments are as in ops.selection.index_scores. first is int32[], the index of
    query 0 in its row, and scores the function index_scores or another. No gradient passes.
    """
    if k_bwy.shape[1] <= index_topk:
        return None
    t = segments_bt.shape[1]
    q_btjy, k_bwy, w_btj = jax.lax.stop_gradient((q_btjy, k_bwy, w_btj))

    def one_block(block):
        q_btjy, w_btj, segments_bt, at_t = block
        is_seen_btw = seen_entries(segments_bt, at_t, windows)
        return packed(select(scores(q_btjy, k_bwy, w_btj), is_seen_btw, index_topk))

    at_t = first + jnp.arange(t)
    return over_query_blocks(one_block, t, at_t, q_btjy, w_btj, segments_bt)[:, :t]
