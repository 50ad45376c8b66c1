"""The indexer's loss over all keys of a row: scores of all heads stay in a TPU core's vector memory.

A tile has keys along its rows and queries along its columns, so that what a query keeps (the log of
its sum of exponentials, its loss) is one row of numbers. Three kernels go over the tiles of a block
of queries, and over the heads within a tile:

  the logs of the sums of attention's exponentials, for each head and query;
  the loss, and the logs of the sums of the index scores' exponentials;
  the gradient of the loss, for which both are saved.

More dimension letters: m, queries of a block; n, keys of a block.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deepseek_jax.ops.platform import precision_of
from deepseek_jax.ops.saved_names import ATTENDED

# Queries and keys of a tile
QUERIES, KEYS = 256, 1024
# The queries and gradients of 64 heads of an indexer lie beside a tile: more than the compiler's own limit
VECTOR_MEMORY = 48 * 2**20
LANES = 128
MASKED = -1e30
# The largest score so far, before the first tile: above masked ones, which then count nothing
BELOW_ALL = -1e20
# No query is in the segment of the keys past a row
NO_SEGMENT = -1


def takes(index, attention):
    """Return whether the kernels take these operands of ops.index_loss.index_loss.

    Index heads fill whole lanes, and both kinds of heads whole tiles. All are bfloat16: products
    would round float32.
    """
    (q_btjy, _, _), (q_bthx, _) = index, attention
    whole = q_btjy.shape[-1] % LANES == 0 and q_btjy.shape[2] % 8 == q_bthx.shape[2] % 8 == 0
    return whole and q_btjy.dtype == q_bthx.dtype == jnp.bfloat16


def index_loss(index, attention, segments_bt, segments_bs, at_t, scale, interpret=False):
    """Compute ops.index_loss.index_loss over all keys that queries see: float32[b t].

    Args:
        index: As there.
        attention: As there; it gets no gradient.
        segments_bt: As there.
        segments_bs: As there.
        at_t: int32[t], the queries' indices in their row.
        scale: As there.
        interpret: Run the kernels' emulation, on any machine.
    """
    (q_btjy, k_bsy, w_btj), (q_bthx, k_bshx) = index, jax.lax.stop_gradient(attention)
    t = q_btjy.shape[1]

    def whole_blocks(array, axis, block, value=0):
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, -array.shape[axis] % block)
        return jnp.pad(array, widths, constant_values=value)

    def of_queries(array_btz, *axes):
        return jnp.transpose(whole_blocks(array_btz, 1, QUERIES), axes)

    index = (
        of_queries(q_btjy, 0, 2, 1, 3),
        whole_blocks(k_bsy, 1, KEYS),
        of_queries(w_btj.astype(jnp.float32), 0, 2, 1),
    )
    attention = (
        of_queries(q_bthx, 0, 2, 1, 3),
        whole_blocks(jnp.swapaxes(k_bshx, 1, 2), 2, KEYS),
    )
    at_b1t = jnp.broadcast_to(at_t, segments_bt.shape)[:, None]
    seen = (
        whole_blocks(segments_bt[:, None], 2, QUERIES),
        whole_blocks(at_b1t, 2, QUERIES, value=-1),
        whole_blocks(segments_bs[..., None], 1, KEYS, value=NO_SEGMENT),
    )
    return _loss(scale, interpret, index, attention, seen)[:, 0, :t]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(scale, interpret, index, attention, seen):
    """Compute the loss of operands of whole blocks, float32[b 1 t].

    Args:
        scale: Factor of attention's scores.
        interpret: See index_loss.
        index: (q [b j t y], k [b s y], w float32[b j t]).
        attention: (q [b h t x], k [b h s x]).
        seen: (segments of the queries int32[b 1 t], their indices in the row int32[b 1 t], segments
            of the keys int32[b s 1]).
    """
    return _loss_and_log_sums(scale, interpret, index, attention, seen)[0]


def _loss_and_log_sums(scale, interpret, index, attention, seen):
    (b, j, t, y), (_, h, s, x) = index[0].shape, attention[1].shape
    call = functools.partial(_over_tiles, attention, seen, interpret=interpret, scale=scale)
    (log_sums_bht,) = call(
        _log_sums_kernel,
        [],
        [_of_queries(h)],
        [jax.ShapeDtypeStruct((b, h, t), jnp.float32)],
        scratch=[(KEYS, QUERIES), (h, QUERIES), (h, QUERIES)],
        flops=2 * b * t * s * h * x,
    )
    row = jax.ShapeDtypeStruct((b, 1, t), jnp.float32)
    loss_b1t, index_log_sums_b1t = call(
        _loss_kernel,
        [*zip(index, _blocks_of_index(j, y), strict=True), (log_sums_bht, _of_queries(h))],
        [_of_queries(1)] * 2,
        [row] * 2,
        scratch=[(KEYS, QUERIES), (KEYS, QUERIES), *[(1, QUERIES)] * 3],
        flops=2 * b * t * s * (h * x + j * y),
    )
    return loss_b1t, (log_sums_bht, index_log_sums_b1t)


def _forward(scale, interpret, index, attention, seen):
    loss_b1t, log_sums = _loss_and_log_sums(scale, interpret, index, attention, seen)
    # Saved with attention's results, so that these two kernels run once
    log_sums = jax.tree.map(lambda a: checkpoint_name(a, ATTENDED), log_sums)
    return loss_b1t, (index, attention, seen, log_sums)


def _backward(scale, interpret, saved, d_loss_b1t):
    index, attention, seen, (log_sums_bht, index_log_sums_b1t) = saved
    (b, j, t, y), (_, h, s, x) = index[0].shape, attention[1].shape
    per_query = zip((log_sums_bht, index_log_sums_b1t, d_loss_b1t), (h, 1, 1), strict=True)
    blocks = _blocks_of_index(j, y)
    # A block of queries has its own gradients of keys
    d_keys = pl.BlockSpec((None, None, KEYS, y), lambda b, q, k, h: (b, q, k, 0))
    shapes = (b, j, t, y), (b, t // QUERIES, s, y), (b, j, t)
    d_q, d_k, d_w = _over_tiles(
        attention,
        seen,
        _gradient_kernel,
        [
            *zip(index, blocks, strict=True),
            *((array, _of_queries(rows)) for array, rows in per_query),
        ],
        [blocks[0], d_keys, blocks[2]],
        [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        scratch=[(KEYS, QUERIES), (KEYS, QUERIES)],
        flops=2 * b * t * s * (h * x + 4 * j * y),
        interpret=interpret,
        scale=scale,
    )
    q, k, _ = index
    d_index = d_q.astype(q.dtype), d_k.sum(1).astype(k.dtype), d_w
    return d_index, jax.tree.map(jnp.zeros_like, attention), None


_loss.defvjp(_forward, _backward)


def _of_queries(rows):
    """Return the block of an array [b rows t] that has a block of queries."""
    return pl.BlockSpec((None, rows, QUERIES), lambda b, q, k, h: (b, 0, q))


def _blocks_of_index(j, y):
    """Return the blocks of the indexer's queries, keys and weights, see _loss."""
    return (
        pl.BlockSpec((None, j, QUERIES, y), lambda b, q, k, h: (b, 0, q, 0)),
        pl.BlockSpec((None, KEYS, y), lambda b, q, k, h: (b, k, 0)),
        _of_queries(j),
    )


def _over_tiles(
    attention, seen, kernel, more, out_specs, out_shape, *, scratch, flops, interpret, scale
):
    """Call a kernel for each head of each tile: the last axes of the grid are queries, keys, heads.

    A result that has no axis of keys is one block for all tiles of a block of queries, so that
    sums stay in it.

    Args:
        attention: See _loss.
        seen: See _loss.
        kernel: A function of the references of `seen`, `attention`, `more`, results and scratch.
        more: [(operand, its block), ...].
        out_specs: The blocks of the results.
        out_shape: The shapes of the results.
        scratch: Shapes of float32 arrays that stay between heads and tiles.
        flops: FLOPs of the products.
        interpret: See index_loss.
        scale: See _loss.
    """
    q_bhtx, k_bhsx = attention
    b, h, t, x = q_bhtx.shape
    s = k_bhsx.shape[2]
    in_specs = [
        _of_queries(1),
        _of_queries(1),
        pl.BlockSpec((None, KEYS, 1), lambda b, q, k, h: (b, k, 0)),
        pl.BlockSpec((None, None, QUERIES, x), lambda b, q, k, h: (b, h, q, 0)),
        pl.BlockSpec((None, None, KEYS, x), lambda b, q, k, h: (b, h, k, 0)),
    ]
    num_tiles = b * (t // QUERIES) * (s // KEYS)
    itemsize = q_bhtx.dtype.itemsize
    return pl.pallas_call(
        functools.partial(kernel, scale=scale),
        grid=(b, t // QUERIES, s // KEYS, h),
        in_specs=[*in_specs, *(spec for _, spec in more)],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=VECTOR_MEMORY,
        ),
        cost_estimate=pl.CostEstimate(
            flops=flops,
            bytes_accessed=num_tiles * h * (QUERIES + KEYS) * x * itemsize,
            transcendentals=b * t * s * h,
        ),
        name=kernel.__name__.strip("_"),
        interpret=interpret,
    )(*seen, *attention, *(operand for operand, _ in more))


def _log_sums_kernel(
    segments_1m, at_1m, segments_n1, q_mx, k_nx, out_hm, bias_nm, largest_hm, total_hm, *, scale
):
    """Add one tile of one head to attention's sums of exponentials."""
    order = _order()
    _start_tile(segments_1m, at_1m, segments_n1, bias_nm)

    @pl.when(order.is_first)
    def _():
        _start_sums(largest_hm, total_hm)

    scores_nm = _attention_scores(q_mx, k_nx, bias_nm, scale)
    _add_exponentials(scores_nm, largest_hm, total_hm, pl.ds(pl.program_id(3), 1))

    @pl.when(order.is_last)
    def _():
        out_hm[...] = _log_sums(largest_hm, total_hm)


def _loss_kernel(
    segments_1m,
    at_1m,
    segments_n1,
    q_mx,
    k_nx,
    q_jmy,
    k_ny,
    w_jm,
    log_sums_hm,
    loss_1m,
    index_log_sums_1m,
    bias_nm,
    share_nm,
    largest_1m,
    total_1m,
    sum_1m,
    *,
    scale,
):
    """Add one head to a tile of attention's shares; with the last head, the tile to the loss."""
    order = _order()
    _start_tile(segments_1m, at_1m, segments_n1, bias_nm, share_nm)

    @pl.when(order.is_first)
    def _():
        _start_sums(largest_1m, total_1m)
        sum_1m[...] = jnp.zeros_like(sum_1m)

    _add_share(q_mx, k_nx, log_sums_hm, bias_nm, share_nm, scale)

    @pl.when(order.is_last_head)
    def _():
        scores_nm = _index_scores(q_jmy, k_ny, w_jm)
        _add_exponentials(scores_nm + bias_nm[...], largest_1m, total_1m)
        share = share_nm[...]
        # share log share is 0 where share is 0
        log_share_nm = jnp.log(jnp.where(share > 0, share, 1.0))
        sum_1m[...] += (share * (log_share_nm - scores_nm)).sum(0, keepdims=True)

    @pl.when(order.is_last)
    def _():
        index_log_sums_1m[...] = _log_sums(largest_1m, total_1m)
        # The shares of a query add up to 1
        loss_1m[...] = sum_1m[...] + index_log_sums_1m[...]


def _gradient_kernel(
    segments_1m,
    at_1m,
    segments_n1,
    q_mx,
    k_nx,
    q_jmy,
    k_ny,
    w_jm,
    log_sums_hm,
    index_log_sums_1m,
    d_loss_1m,
    d_q_jmy,
    d_k_ny,
    d_w_jm,
    bias_nm,
    share_nm,
    *,
    scale,
):
    """Add one head to a tile of attention's shares; with the last head, the tile to the gradients."""
    order = _order()
    _start_tile(segments_1m, at_1m, segments_n1, bias_nm, share_nm)

    @pl.when(order.is_first)
    def _():
        d_q_jmy[...] = jnp.zeros_like(d_q_jmy)
        d_w_jm[...] = jnp.zeros_like(d_w_jm)

    _add_share(q_mx, k_nx, log_sums_hm, bias_nm, share_nm, scale)

    @pl.when(order.is_last_head)
    def _():
        scores_nm = _index_scores(q_jmy, k_ny, w_jm) + bias_nm[...]
        weights_nm = jnp.exp(scores_nm - index_log_sums_1m[...])
        d_scores_nm = d_loss_1m[...] * (weights_nm - share_nm[...])
        k, factor = k_ny[...], k_ny.shape[-1] ** -0.5
        d_k_ny[...] = jnp.zeros_like(d_k_ny)

        def add_head(j, _):
            row = pl.ds(j, 1)
            q_my = q_jmy[j]
            products_nm = _product(k, q_my, ((1,), (1,))) * factor
            relus_nm = jnp.maximum(products_nm, 0.0)
            d_w_jm[row] += (d_scores_nm * relus_nm).sum(0, keepdims=True)
            d_nm = jnp.where(products_nm > 0, d_scores_nm * (w_jm[row] * factor), 0.0)
            d_nm = d_nm.astype(k.dtype)
            d_q_jmy[j] += _product(d_nm, k, ((0,), (0,)))
            d_k_ny[...] += _product(d_nm, q_my, ((1,), (0,)))

        jax.lax.fori_loop(0, len(q_jmy), add_head, None)


class _Order(NamedTuple):
    """Where in a block of queries a kernel's call is.

    Attributes:
        is_first: bool[], the first head of the first tile.
        is_last_head: bool[], the last head of a tile.
        is_last: bool[], the last head of the last tile.
    """

    is_first: jax.Array
    is_last_head: jax.Array
    is_last: jax.Array


def _order():
    """Tell where in a block of queries a call is: an _Order."""
    head, keys = pl.program_id(3), pl.program_id(2)
    is_last_head = head == pl.num_programs(3) - 1
    is_last = is_last_head & (keys == pl.num_programs(2) - 1)
    return _Order((head == 0) & (keys == 0), is_last_head, is_last)


def _start_tile(segments_1m, at_1m, segments_n1, bias_nm, share_nm=None):
    """Set what is added to a tile's scores, before its first head."""
    first = pl.program_id(2) * KEYS

    @pl.when(pl.program_id(3) == 0)
    def _():
        at_nm = first + jax.lax.broadcasted_iota(jnp.int32, bias_nm.shape, 0)
        is_seen_nm = (at_nm <= at_1m[...]) & (segments_n1[...] == segments_1m[...])
        bias_nm[...] = jnp.where(is_seen_nm, 0.0, MASKED)
        if share_nm is not None:
            share_nm[...] = jnp.zeros_like(share_nm)


def _start_sums(largest, total):
    largest[...] = jnp.full_like(largest, BELOW_ALL)
    total[...] = jnp.zeros_like(total)


def _add_exponentials(scores_nm, largest, total, row=slice(None)):
    """Add the exponentials of a tile to the sums of a row, arXiv:2205.14135."""
    before = largest[row]
    above = jnp.maximum(before, scores_nm.max(0, keepdims=True))
    total[row] = jnp.exp(before - above) * total[row] + jnp.exp(scores_nm - above).sum(
        0, keepdims=True
    )
    largest[row] = above


def _log_sums(largest, total):
    # 0 for a query that sees no key
    is_any = total[...] > 0
    return jnp.where(is_any, largest[...] + jnp.log(jnp.where(is_any, total[...], 1.0)), 0.0)


def _add_share(q_mx, k_nx, log_sums_hm, bias_nm, share_nm, scale):
    """Add a head's part of the mean over heads of attention's probabilities."""
    scores_nm = _attention_scores(q_mx, k_nx, bias_nm, scale)
    log_sums_1m = log_sums_hm[pl.ds(pl.program_id(3), 1)]
    share_nm[...] += jnp.exp(scores_nm - log_sums_1m) / len(log_sums_hm)


def _attention_scores(q_mx, k_nx, bias_nm, scale):
    return _product(k_nx[...], q_mx[...], ((1,), (1,))) * scale + bias_nm[...]


def _index_scores(q_jmy, k_ny, w_jm):
    """Compute a tile of ops.selection.index_scores, one head after the other."""
    k, factor = k_ny[...], k_ny.shape[-1] ** -0.5

    def add_head(j, scores_nm):
        products_nm = _product(k, q_jmy[j], ((1,), (1,))) * factor
        return scores_nm + w_jm[pl.ds(j, 1)] * jnp.maximum(products_nm, 0.0)

    zeros_nm = jnp.zeros((len(k_ny), q_jmy.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, len(q_jmy), add_head, zeros_nm)


def _product(a, b, contracted):
    return jax.lax.dot_general(
        a,
        b,
        (contracted, ((), ())),
        precision=precision_of(a),
        preferred_element_type=jnp.float32,
    )
