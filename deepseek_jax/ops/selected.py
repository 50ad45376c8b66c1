"""Attention of each query over the keys that it selected, which are gathered, and its indexer's loss.

DeepSeek-V3.2-Exp, section 2; arXiv:2512.02556. The masked form (ops.attention, ops.index_loss)
computes with every key of a row. This form reads latents, so that a selected key is one short row
for all heads (arXiv:2405.04434, appendix C).

More dimension letters: k, the keys that a query selected; x = c + r, a latent with its rotary key; z,
all that is gathered of a key.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.ops.attention import MASKED
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.index_loss import divergence
from deepseek_jax.ops.platform import size_of
from deepseek_jax.ops.selection import weighted_relus
from deepseek_jax.trees import PyTree

# Slots are never beyond the row
IN_BOUNDS = "promise_in_bounds"


class Queries(NamedTuple):
    """Queries of attention, and of the indexer where it learns.

    Attributes:
        q: [b t h x], absorbed: the first c numbers are products with k_up, the others are rotated.
        index_q: [b t j y], of the indexer; None where it does not learn.
        index_w: float32[b t j], of the indexer; None where it does not learn.
    """

    q: jax.Array
    index_q: jax.Array | None
    index_w: jax.Array | None


def attend_selected(
    queries: Queries, keys_bsz: jax.Array, slots_btk: jax.Array, *, kv_lora_rank: int, scale: float
) -> tuple[jax.Array, jax.Array | None]:
    """Attend over selected keys, and compare the indexer's scores of them with attention's weights.

    Args:
        queries: The queries.
        keys_bsz: The latents of whole rows, x numbers each, and behind them the y numbers of the
            indexer's keys, where it learns: a gathered row costs more than its bytes.
        slots_btk: int32, the indices of the keys that a query selected, -1 where it selected fewer.
        kv_lora_rank: c.
        scale: Factor of attention's scores.

    Returns:
        The weighted sums of latents, [b t h c]; and the loss of the indexer over the selected keys,
        as in ops.index_loss.index_loss, float32[b t], or None.
    """
    attend = functools.partial(_attend_rows, kv_lora_rank, scale)
    return over_selected(attend, queries, keys_bsz, slots_btk)


def _attend_rows(kv_lora_rank, scale, queries, rows_bmkz, mask_bmk):
    latents_bmkx, index_bmky = jnp.split(rows_bmkz, [queries.q.shape[-1]], axis=-1)
    mask_bm1k = mask_bmk[:, :, None]
    scores_bmhk = dot("bmhx,bmkx->bmhk", queries.q, latents_bmkx, jnp.float32) * scale
    weights_bmhk = jax.nn.softmax(jnp.where(mask_bm1k, scores_bmhk, MASKED), axis=-1)
    # A query without a key has equal weights on masked keys
    weights_bmhk = jnp.where(mask_bm1k, weights_bmhk, 0.0)
    values_bmkc = latents_bmkx[..., :kv_lora_rank]
    out_bmhc = dot("bmhk,bmkc->bmhc", weights_bmhk.astype(values_bmkc.dtype), values_bmkc)
    if queries.index_q is None:
        return out_bmhc, None
    share_bmk = jax.lax.stop_gradient(weights_bmhk).mean(2)
    products_bmjk = dot("bmjy,bmky->bmjk", queries.index_q, index_bmky, jnp.float32)
    index_scores_bmk = weighted_relus(products_bmjk, queries.index_q, queries.index_w)
    loss_bm = divergence(share_bmk, index_scores_bmk, mask_bmk)
    return out_bmhc, jnp.where(mask_bmk.any(-1), loss_bm, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def over_selected(
    function: Callable, queries: PyTree, keys_bsz: jax.Array, slots_btk: jax.Array
) -> PyTree:
    """Call function(queries, rows, mask) on one block of queries at a time, with their own keys.

    The gradient gathers a block's rows and computes its function again, so that between the two
    passes nothing is saved but the arguments. The gradients of a key add up in float32.

    Args:
        function: It gets [b m ...] of the queries, [b m k z] of the keys, and bool[b m k], False
            where a slot has no key. It returns a tree of [b m ...], and closes over no array.
        queries: A tree of [b t ...] of floats.
        keys_bsz: The keys of whole rows.
        slots_btk: int32, the key of each row, -1 for none.
    """
    split = functools.partial(_split, slots_btk)

    def one_block(block):
        queries, slots_bmk = block
        return function(queries, _rows(keys_bsz, slots_bmk), slots_bmk >= 0)

    out = jax.lax.map(one_block, (jax.tree.map(split, queries), split(slots_btk + 1) - 1))
    return jax.tree.map(functools.partial(_joined, slots_btk), out)


def _forward(function, queries, keys_bsz, slots_btk):
    return over_selected(function, queries, keys_bsz, slots_btk), (queries, keys_bsz, slots_btk)


def _backward(function, saved, cotangents):
    queries, keys_bsz, slots_btk = saved
    split = functools.partial(_split, slots_btk)
    add_rows = jax.vmap(lambda sums, slots, rows: sums.at[slots].add(rows, mode=IN_BOUNDS))

    def add_block(sums_bsz, block):
        queries, slots_bmk, d_out = block
        rows_bmkz, mask_bmk = _rows(keys_bsz, slots_bmk), slots_bmk >= 0
        _, pull_back = jax.vjp(lambda *arrays: function(*arrays, mask_bmk), queries, rows_bmkz)
        d_queries, d_rows = pull_back(d_out)
        return add_rows(sums_bsz, jnp.maximum(slots_bmk, 0), d_rows.astype(jnp.float32)), d_queries

    blocks = jax.tree.map(split, queries), split(slots_btk + 1) - 1, jax.tree.map(split, cotangents)
    zeros_bsz = jnp.zeros(keys_bsz.shape, jnp.float32)
    d_keys_bsz, d_queries = jax.lax.scan(add_block, zeros_bsz, blocks)
    d_queries = jax.tree.map(functools.partial(_joined, slots_btk), d_queries)
    return d_queries, d_keys_bsz.astype(keys_bsz.dtype), None


over_selected.defvjp(_forward, _backward)


def _rows(keys_bsz, slots_bmk):
    """Gather the rows of slots, [b m k z]. Where there is no key, that is the row of slot 0."""
    take = jax.vmap(lambda keys, slots: keys.at[slots].get(mode=IN_BOUNDS))
    return take(keys_bsz, jnp.maximum(slots_bmk, 0))


def _block(slots_btk):
    """Return how many queries are computed at a time."""
    b, t, k = slots_btk.shape
    return min(t, max(size_of("selected_rows_alive") // (b * k), 1))


def _split(slots_btk, array):
    """Cut into blocks of queries, padded with zeros: [b t ...] -> [n b m ...]."""
    b, t, *inner_shape = array.shape
    block = _block(slots_btk)
    padded = jnp.pad(array, [(0, 0), (0, -t % block)] + [(0, 0)] * len(inner_shape))
    return jnp.moveaxis(padded.reshape(b, -1, block, *inner_shape), 1, 0)


def _joined(slots_btk, blocks):
    """Undo `_split`."""
    n, b, m, *inner_shape = blocks.shape
    return jnp.moveaxis(blocks, 0, 1).reshape(b, n * m, *inner_shape)[:, : slots_btk.shape[1]]
