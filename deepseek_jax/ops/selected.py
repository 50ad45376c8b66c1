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
from deepseek_jax.ops.pallas import selected as pallas
from deepseek_jax.ops.platform import choose, size_of
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
    queries: Queries,
    keys_bsz: jax.Array,
    slots_btk: jax.Array,
    *,
    kv_lora_rank: int,
    scale: float,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Attend over selected keys, and compare the indexer's scores of them with attention's weights.

    Args:
        queries: The queries.
        keys_bsz: The latents of whole rows, x numbers each, and behind them the y numbers of the
            indexer's keys, where it learns: a gathered row costs more than its bytes.
        slots_btk: int32, the indices of the keys that a query selected, -1 where it selected fewer.
        kv_lora_rank: c.
        scale: Factor of attention's scores.
        implementation: See `over_selected`.

    Returns:
        The weighted sums of latents, [b t h c]; and the loss of the indexer over the selected keys,
        as in ops.index_loss.index_loss, float32[b t], or None.
    """
    q, index_q, index_w = queries
    attend = functools.partial(_attend_rows, kv_lora_rank, scale)
    matrices = q, index_q, None if index_w is None else index_w[:, :, None]
    out, loss = over_selected(attend, matrices, keys_bsz, slots_btk, implementation)
    return out, None if loss is None else loss[..., 0, 0]


def _attend_rows(kv_lora_rank, scale, queries, rows_kz, mask_1k):
    q_hx, index_q_jy, index_w_1j = queries
    x = q_hx.shape[-1]
    latents_kx = rows_kz[:, :x]
    scores_hk = dot("hx,kx->hk", q_hx, latents_kx, jnp.float32) * scale
    weights_hk = jax.nn.softmax(jnp.where(mask_1k, scores_hk, MASKED), axis=-1)
    # A query without a key has equal weights on masked keys
    weights_hk = jnp.where(mask_1k, weights_hk, 0.0)
    values_kc = latents_kx[:, :kv_lora_rank]
    out_hc = dot("hk,kc->hc", weights_hk.astype(values_kc.dtype), values_kc)
    if index_q_jy is None:
        return out_hc, None
    share_1k = jax.lax.stop_gradient(weights_hk).mean(0, keepdims=True)
    products_jk = dot("jy,ky->jk", index_q_jy, rows_kz[:, x:], jnp.float32)
    index_scores_1k = weighted_relus(products_jk, index_q_jy, index_w_1j)
    loss_11 = divergence(share_1k, index_scores_1k, mask_1k)[:, None]
    return out_hc, jnp.where(mask_1k.any(-1, keepdims=True), loss_11, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def over_selected(
    function: Callable,
    queries: PyTree,
    keys_bsz: jax.Array,
    slots_btk: jax.Array,
    implementation: str | None = None,
) -> PyTree:
    """Call function(queries, rows, mask) for each query with its own keys, a block of queries at a time.

    The gradient gathers a block's rows and computes its function again, so that between the two
    passes nothing is saved but the arguments. The gradients of a key add up in float32.

    Args:
        function: It gets one query's matrices of `queries`, its keys [k z], and bool[1 k], False
            where a slot has no key. It returns a tree of matrices, and closes over no array.
        queries: A tree of [b t p q] of floats.
        keys_bsz: The keys of whole rows.
        slots_btk: int32, the key of each row, -1 for none.
        implementation: "plain", or the Pallas kernel, "kernel", or its emulation, "interpreted".
            None is the choice of ops.platform.

    Returns:
        The results of function, a tree of [b t p q].

    Raises:
        ValueError: If this machine lacks the implementation.
    """
    split = functools.partial(_split, slots_btk)
    results, _ = _form(keys_bsz, implementation)

    def one_block(block):
        queries, slots_bmk = block
        return results(function, queries, *_rows(keys_bsz, slots_bmk))

    out = jax.lax.map(one_block, (jax.tree.map(split, queries), split(slots_btk + 1) - 1))
    return jax.tree.map(functools.partial(_joined, slots_btk), out)


def _forward(function, queries, keys_bsz, slots_btk, implementation):
    out = over_selected(function, queries, keys_bsz, slots_btk, implementation)
    return out, (queries, keys_bsz, slots_btk)


def _backward(function, implementation, saved, cotangents):
    queries, keys_bsz, slots_btk = saved
    split = functools.partial(_split, slots_btk)
    _, gradients = _form(keys_bsz, implementation)
    add_rows = jax.vmap(lambda sums, slots, rows: sums.at[slots].add(rows, mode=IN_BOUNDS))

    def add_block(sums_bsz, block):
        queries, slots_bmk, d_out = block
        d_queries, d_rows = gradients(function, queries, *_rows(keys_bsz, slots_bmk), d_out)
        return add_rows(sums_bsz, jnp.maximum(slots_bmk, 0), d_rows), d_queries

    blocks = jax.tree.map(split, queries), split(slots_btk + 1) - 1, jax.tree.map(split, cotangents)
    zeros_bsz = jnp.zeros(keys_bsz.shape, jnp.float32)
    d_keys_bsz, d_queries = jax.lax.scan(add_block, zeros_bsz, blocks)
    d_queries = jax.tree.map(functools.partial(_joined, slots_btk), d_queries)
    return d_queries, d_keys_bsz.astype(keys_bsz.dtype), None


over_selected.defvjp(_forward, _backward)


def _form(keys_bsz, implementation):
    """Choose the two functions of a block of queries: its results, and their gradients."""
    kernels = pallas.results, pallas.gradients
    return choose(
        "attend_selected",
        implementation,
        lambda: pallas.takes(keys_bsz),
        plain=(_results, _gradients),
        kernel=kernels,
        interpreted=tuple(functools.partial(kernel, interpret=True) for kernel in kernels),
    )


def _results(function, queries, rows_bmkz, mask_bm1k):
    return jax.vmap(jax.vmap(function))(queries, rows_bmkz, mask_bm1k)


def _gradients(function, queries, rows_bmkz, mask_bm1k, cotangents):
    of_block = functools.partial(_results, function, mask_bm1k=mask_bm1k)
    _, pull_back = jax.vjp(of_block, queries, rows_bmkz)
    d_queries, d_rows_bmkz = pull_back(cotangents)
    return d_queries, d_rows_bmkz.astype(jnp.float32)


def _rows(keys_bsz, slots_bmk):
    """Gather the rows of slots, [b m k z], and tell where there is one, bool[b m 1 k].

    Where there is none, it is the row of slot 0.
    """
    take = jax.vmap(lambda keys, slots: keys.at[slots].get(mode=IN_BOUNDS))
    return take(keys_bsz, jnp.maximum(slots_bmk, 0)), slots_bmk[:, :, None] >= 0


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
