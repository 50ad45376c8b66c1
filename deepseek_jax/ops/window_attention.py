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


def attend_window(
    q_bthx, kv_bsx, entries: Entries | None, sink_h, segments_bs, *, window: int, scale
):
    """Attend to the latest `window` tokens of a document and to its entries: [b t h x].

    The softmax also has the sink, one logit of each head, which has no value. Scores and softmax are
    float32. Long rows work through one block of queries at a time, with the keys that the block
    sees, and compute it again for the gradient.

    Args:
        q_bthx: Queries.
        kv_bsx: Keys, which are the values too.
        entries: None in a layer without a compressor.
        sink_h: float32.
        segments_bs: int32, 0 on padding.
        window: The number of tokens that a query sees, with itself.
        scale: Factor of the scores.
    """

    @jax.checkpoint
    def one_block(block):
        kv_bsx, of_window_bhts, of_entries_bhtw = weights(block)
        out_bthx = dot("bhts,bsx->bthx", of_window_bhts.astype(kv_bsx.dtype), kv_bsx)
        if entries is None:
            return out_bthx
        return out_bthx + dot("bhtw,bwx->bthx", of_entries_bhtw.astype(kv_bsx.dtype), entries.kv)

    weights = attention_weights(kv_bsx, entries, sink_h, segments_bs, window=window, scale=scale)
    return _by_query_blocks(one_block, q_bthx, segments_bs, entries)


def attention_weights(kv_bsx, entries: Entries | None, sink_h, segments_bs, *, window: int, scale):
    """Return the function that computes the softmax of `attend_window` for a block of queries.

    Returns:
        A function of (q [b t h x], segments int32[b t], bits of selected entries uint8[b t z] if
        entries.selected is given, at int32[t], the indices in their row). It returns the keys of
        the block's windows [b s x], and the weights of these keys float32[b h t s] and of the
        entries float32[b h t w].
    """

    def weights(block):
        q_bthx, segments_bt, *bits, at_t = block
        # The block's first query sees the earliest key
        num_keys = min(len(at_t) + window - 1, kv_bsx.shape[1])
        first = jnp.clip(at_t[0] - window + 1, 0, kv_bsx.shape[1] - num_keys)
        keys_bsx, key_segments_bs = (
            jax.lax.dynamic_slice_in_dim(a, first, num_keys, axis=1) for a in (kv_bsx, segments_bs)
        )
        age_ts = at_t[:, None] - (first + jnp.arange(num_keys))
        is_seen_bts = (age_ts >= 0) & (age_ts < window)
        is_seen_bts &= segments_bt[:, :, None] == key_segments_bs[:, None]
        scores = [_scores(q_bthx, keys_bsx, is_seen_bts, scale)]
        if entries is not None:
            is_seen_btw = seen_entries(segments_bt, at_t, entries.windows)
            if bits:
                is_seen_btw &= unpacked(bits[0], entries.kv.shape[1])
            scores.append(_scores(q_bthx, entries.kv, is_seen_btw, scale))
        sink_bht1 = jnp.broadcast_to(sink_h[:, None, None], (*scores[0].shape[:3], 1))
        weights = softmax(jnp.concatenate([*scores, sink_bht1], axis=-1))[..., :-1]
        return keys_bsx, *jnp.split(weights, [num_keys], axis=-1)

    return weights


def softmax(scores):
    """Return the softmax over the last axis, in float32."""
    return jax.nn.softmax(scores, axis=-1)


def _scores(q_bthx, kv_bsx, is_seen_bts, scale):
    scores_bhts = dot("bthx,bsx->bhts", q_bthx, kv_bsx, jnp.float32) * scale
    return jnp.where(is_seen_bts[:, None], scores_bhts, MASKED)


def _by_query_blocks(one_block, q_bthx, segments_bt, entries):
    """Apply one_block to (q, segments, bits, at) by ops.selection.over_query_blocks: [b t ...]."""
    t = q_bthx.shape[1]
    bits = () if entries is None or entries.selected is None else (entries.selected,)
    return over_query_blocks(one_block, t, jnp.arange(t), q_bthx, segments_bt, *bits)[:, :t]


def select_entries(q_btjy, k_bwy, w_btj, segments_bt, windows: Windows, index_topk: int):
    """Select the entries of each query, as `packed` bits uint8[b t z]; None if it selects all.

    The first three arguments are as in ops.selection.index_scores. No gradient passes.
    """
    if k_bwy.shape[1] <= index_topk:
        return None
    t = segments_bt.shape[1]
    q_btjy, k_bwy, w_btj = jax.lax.stop_gradient((q_btjy, k_bwy, w_btj))

    def one_block(block):
        q_btjy, w_btj, segments_bt, at_t = block
        is_seen_btw = seen_entries(segments_bt, at_t, windows)
        return packed(select(index_scores(q_btjy, k_bwy, w_btj), is_seen_btw, index_topk))

    return over_query_blocks(one_block, t, jnp.arange(t), q_btjy, w_btj, segments_bt)[:, :t]
