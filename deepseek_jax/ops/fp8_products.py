"""Products of E4M3 values, as DeepSeek-V3 trains with them (arXiv:2412.19437, section 3.3).

A block is 128 terms of a sum. Its values are multiplied as they are, its sum is multiplied by the scales of
both operands, and blocks add up in float32: what FP8 units compute that promote partial sums every 128 terms.
qwix 0.1.8 does not fit: its differentiable product tiles both operands alike (either weights in 128 x 1 or
activations in 128 x 128), and its quantiser refuses sizes that 128 does not divide and turns infinity into
NaN.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.ops import grouped_matmul as grouped
from deepseek_jax.ops.fp8 import (
    BLOCK,
    COLUMN,
    LARGEST,
    ROW,
    TERMS,
    dequantize,
    quantize,
    tile_scale,
)
from deepseek_jax.ops.pallas import fp8 as pallas
from deepseek_jax.ops.platform import choice, choose

# Values times scales carry 28 bits; a GPU's default product drops most of them
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Blocks(NamedTuple):
    """One operand of a product: E4M3 values, and a float32 scale for each block of its contracted axis.

    The left one: values [... m k], scale [... m blocks]. The right one: [... k n] and [... blocks n].
    """

    values: jax.Array
    scale: jax.Array


def _rows(x, parts=1, power_of_two=False):
    """x [... m k] as a left operand, in tiles of 1 x 128 that each cover columns of one part only."""
    parts = _that_matter(x, parts)
    values, scale = quantize(_apart(x, parts), ROW, power_of_two=power_of_two)
    return Blocks(_together(values), _together(scale))


def _columns(x, scale=None, power_of_two=False):
    """x [... k n] as a right operand, in tiles of 128 x 1. scale: see quantize."""
    return Blocks(*quantize(x, COLUMN, power_of_two=power_of_two, scale=scale))


def _weights(w, parts):
    """w [... k n] as a right operand, in tiles of 128 x 128 that each cover columns of one part only."""
    parts = _that_matter(w, parts)
    values, scale = quantize(_apart(w, parts), BLOCK)
    scale = _each(scale, -1, values.shape[-1])
    return Blocks(_together(values), _together(scale))


def _weights_transposed(w, parts):
    """The transpose [... n k] of w [... k n] as a right operand, with the values of _weights."""
    parts = _that_matter(w, parts)
    values, scale = quantize(_apart(w, parts), BLOCK)
    scale = _each(scale, -2, values.shape[-2])
    return _transposed(Blocks(_together(values), _together(scale)))


def _that_matter(x, parts):
    """1 where the ends of parts are ends of tiles anyway."""
    return 1 if x.shape[-1] // parts % TERMS == 0 else parts


def _transposed(blocks):
    return Blocks(*(jnp.swapaxes(array, -1, -2) for array in blocks))


# Checkpoints store the Linear layers that are side by side in a matrix apart, and no scale covers two
def _apart(x, parts):
    """[... i parts*j] -> [... parts i j]."""
    *lead, j = x.shape
    return jnp.moveaxis(x.reshape(*lead, parts, j // parts), -2, -3)


def _together(x):
    x = jnp.moveaxis(x, -3, -2)
    return x.reshape(*x.shape[:-2], -1)


def _each(scale, axis, size):
    """The scale of every term of an axis of this size, from those of its blocks."""
    spread = jnp.repeat(scale, TERMS, axis=axis)
    return jax.lax.slice_in_dim(spread, 0, size, axis=axis)


def block_product(
    left: Blocks,
    right: Blocks,
    *,
    runs: int = 1,
    out_dtype="float32",
    implementation: str | None = None,
):
    """left [g m k] times right [g k n], block by block: -> out_dtype[g m n].

    runs: of how many equal runs the contracted axis is made. Blocks restart with each, and the last block of
    a run may be short.
    implementation: "dequantized" multiplies values times scales in float32 at full precision, which is the
    same up to float32's rounding; "kernel" is ops.pallas.fp8 for TPU and "interpreted" its emulation. None
    takes the choice of ops.platform.
    """
    product = choose(
        "block_product",
        implementation,
        dequantized=_dequantized,
        kernel=_by_kernel,
        interpreted=functools.partial(_by_kernel, interpret=True),
    )
    return product(left, right, runs, out_dtype)


def _dequantized(left, right, runs, out_dtype):
    out = _einsum("gmk,gkn->gmn", _whole(left, -1, runs), _whole(right, -2, runs))
    return out.astype(out_dtype)


def _whole(blocks, axis, runs):
    """Values times scales in float32. axis: the contracted one, -1 or -2."""
    values, scale = blocks
    size = values.shape[axis] // runs
    each = [_each(run, axis, size) for run in jnp.split(scale, runs, axis)]
    return values.astype(jnp.float32) * jnp.concatenate(each, axis)


def _by_kernel(left, right, runs, out_dtype, interpret=False):
    g, m, n = *left.values.shape[:2], right.values.shape[-1]
    rows = pallas.dense_rows(m)
    values, scale = _full_blocks(left, -1, runs)
    padded = [
        jnp.pad(x, [(0, 0), (0, -m % rows), (0, 0)]).reshape(-1, x.shape[-1])
        for x in (values, scale)
    ]
    tiles = len(padded[0]) // rows
    out = pallas.product(
        *padded,
        *_full_blocks(right, -2, runs),
        group_of_tile=jnp.arange(tiles) // (tiles // g),
        tiles=tiles,
        out_dtype=out_dtype,
        interpret=interpret,
    )
    return out.reshape(g, -1, n)[:, :m]


def _full_blocks(blocks, axis, runs):
    """Blocks whose every run is filled up with zeros to whole blocks. axis: the contracted one, -1 or -2."""
    values, scale = blocks
    short = -(values.shape[axis] // runs) % TERMS
    if not short:
        return blocks
    padding = [(0, 0)] * values.ndim
    padding[axis] = 0, short
    filled = [jnp.pad(run, padding) for run in jnp.split(values, runs, axis)]
    return Blocks(jnp.concatenate(filled, axis), scale)


class _Dot(NamedTuple):
    """How fp8_dot computes: its arguments, and x's dtype."""

    spec: str
    out_dtype: str
    power_of_two: bool
    implementation: str | None
    x_dtype: str


def fp8_dot(
    spec: str,
    x,
    w,
    out_dtype=None,
    *,
    power_of_two: bool = False,
    implementation: str | None = None,
):
    """ops.dot.dot with E4M3 operands in the product and in both of its gradients.

    Letters that x, w and the result all have are batch axes. The other letters flatten to three axes: those
    of both x and w to the contracted k, in w's order; those of x alone to the tokens m; those of w alone to
    n. If n begins with a letter z, w holds the weights of z Linear layers side by side (gate and up), which
    share no tile.
    Fprop and Dgrad round x and dy in tiles of 1 x 128, along k and along n, and w[k n] in blocks of
    128 x 128. Wgrad rounds x and dy in tiles of 128 tokens. x is saved in FP8 for Wgrad, which therefore
    rounds Fprop's rounded x a second time (section 3.5.2).
    power_of_two: round x's scales up to powers of two in Fprop and in Wgrad, so that the second rounding is
    exact except for underflow (published for the inputs of the Linear after attention and of the MoE
    up-projection). implementation: see block_product.
    """
    out_dtype = jnp.dtype(out_dtype or x.dtype).name
    return _dot(_Dot(spec, out_dtype, power_of_two, implementation, x.dtype.name), x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(how, x, w):
    return _dot_forward(how, x, w)[0]


def _dot_forward(how, x, w):
    of_x, of_w, of_y = _groups(how.spec)
    # Wgrad gets these FP8 values, not x (section 3.5.2)
    kept = _rows(_matrix(x, *of_x), power_of_two=how.power_of_two)
    y = block_product(
        kept,
        _weights(_matrix(w, *of_w), _parts(of_w, w)),
        out_dtype=how.out_dtype,
        implementation=how.implementation,
    )
    return _tensor(y, *of_y, _sizes(of_x, x) | _sizes(of_w, w)), (kept, w)


def _dot_backward(how, saved, dy):
    (kept, w), (of_x, of_w, of_y) = saved, _groups(how.spec)
    sizes = _sizes(of_w, w) | _sizes(of_y, dy)
    parts, dy_gmn = _parts(of_w, w), _matrix(dy, *of_y)
    product = functools.partial(block_product, implementation=how.implementation)
    # Tiles run along the contracted axis: n in Dgrad, tokens in Wgrad. w's square blocks serve either
    dx = product(
        _rows(dy_gmn, parts),
        _weights_transposed(_matrix(w, *of_w), parts),
        runs=parts,
        out_dtype=how.x_dtype,
    )
    x_gmk = _columns(*kept, how.power_of_two)
    dw = product(_transposed(x_gmk), _columns(dy_gmn), out_dtype=w.dtype)
    return _tensor(dx, *of_x, sizes), _tensor(dw, *of_w, sizes)


_dot.defvjp(_dot_forward, _dot_backward)


def _groups(spec):
    """For x, w and the result: (letters, the same letters in the three groups of a batched matrix's axes)."""
    left, right, result = re.split(",|->", spec)
    batch = "".join(c for c in right if c in left and c in result)
    k = "".join(c for c in right if c not in result)
    m = "".join(c for c in left if c not in right)
    n = "".join(c for c in right if c not in left)
    return (left, (batch, m, k)), (right, (batch, k, n)), (result, (batch, m, n))


def _parts(of_w, w):
    """The number of Linear layers whose weights are side by side in w."""
    _, (_, _, n) = of_w
    return _sizes(of_w, w)["z"] if n.startswith("z") and n != "z" else 1


def _sizes(of, array):
    return dict(zip(of[0], array.shape, strict=True))


def _matrix(array, letters, groups):
    shape = [math.prod(array.shape[letters.index(c)] for c in group) for group in groups]
    return array.transpose([letters.index(c) for c in "".join(groups)]).reshape(shape)


def _tensor(matrix, letters, groups, sizes):
    order = "".join(groups)
    return matrix.reshape([sizes[c] for c in order]).transpose([order.index(c) for c in letters])


class _Grouped(NamedTuple):
    """How grouped_fp8 computes: its arguments, and the rows' dtype."""

    block: int
    implementation: str | None
    power_of_two: bool
    parts: int
    dtype: str


def expert_block(choices: int, n_routed_experts: int):
    """ops.grouped_matmul.block_size for grouped_fp8."""
    return choice("fp8_expert_block") or grouped.block_size(choices, n_routed_experts)


def grouped_fp8(
    rows,
    kernel,
    rows_per_expert,
    *,
    block: int,
    implementation: str | None = None,
    power_of_two: bool = False,
    parts: int = 1,
):
    """ops.grouped_matmul.grouped_matmul with fp8_dot's numerics: one fp8_dot for each expert and part.

    block: each number in rows_per_expert is a multiple of it. parts: the number of Linear layers whose
    columns are side by side in kernel [e d n]. Each expert's matrix is rounded once, before the product.
    Wgrad's tiles of 128 tokens restart with every expert. Rows past the sum of rows_per_expert share no tile
    with an expert.
    implementation: "kernel" is ops.pallas.fp8 for TPU and "interpreted" its emulation; they raise ValueError
    unless block is a multiple of 128. Others are grouped_matmul's, of values times scales.
    """
    how = _Grouped(block, implementation, power_of_two, parts, rows.dtype.name)
    return _grouped(how, rows, kernel, rows_per_expert)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped(how, rows, kernel, rows_per_expert):
    return _grouped_forward(how, rows, kernel, rows_per_expert)[0]


def _grouped_forward(how, rows, kernel, rows_per_expert):
    kept = _rows(rows, power_of_two=how.power_of_two)
    out = _form(how).product(how, kept, _weights(kernel, how.parts), rows_per_expert)
    return out, (kept, kernel, rows_per_expert)


def _grouped_backward(how, saved, dy):
    (kept, kernel, rows_per_expert), form = saved, _form(how)
    right = _weights_transposed(kernel, how.parts)
    d_rows = form.product(how, _rows(dy, how.parts), right, rows_per_expert, runs=how.parts)
    d_kernel = form.over_rows(how, kept, dy, rows_per_expert)
    return d_rows, d_kernel.astype(kernel.dtype), None


_grouped.defvjp(_grouped_forward, _grouped_backward)


class _Form(NamedTuple):
    """product(how, left, right, rows_per_expert, runs=1) and over_rows(how, kept, dy, rows_per_expert)."""

    product: Callable
    over_rows: Callable


def _form(how):
    plain = {
        name: _Form(
            functools.partial(_grouped_dequantized, name),
            functools.partial(_over_rows_dequantized, name),
        )
        for name in ("ragged", "pieces")
    }
    return choose(
        "grouped_fp8",
        how.implementation,
        **plain,
        kernel=_Form(_grouped_by_kernel, _over_rows_by_kernel),
        interpreted=_Form(
            functools.partial(_grouped_by_kernel, interpret=True),
            functools.partial(_over_rows_by_kernel, interpret=True),
        ),
    )


def _grouped_dequantized(name, how, left, right, rows_per_expert, runs=1):
    # As for _einsum: a default product would drop bits of value times scale
    with jax.default_matmul_precision("highest"):
        out = grouped.grouped_matmul(
            _whole(left, -1, runs), _whole(right, -2, runs), rows_per_expert, implementation=name
        )
    return out.astype(how.dtype)


def _over_rows_dequantized(name, how, kept, dy, rows_per_expert):
    tokens = functools.partial(_rounded_by_tokens, rows_per_expert=rows_per_expert, block=how.block)
    with jax.default_matmul_precision("highest"):
        return grouped.product_over_rows(
            tokens(dequantize(*kept, ROW), how.power_of_two),
            tokens(dy.astype(jnp.float32)),
            rows_per_expert,
            implementation=name,
        )


def _grouped_by_kernel(how, left, right, rows_per_expert, runs=1, interpret=False):
    group_of_tile, tiles = _tiles(how, len(left.values), rows_per_expert)
    return pallas.product(
        *_full_blocks(left, -1, runs),
        *_full_blocks(right, -2, runs),
        group_of_tile=group_of_tile,
        tiles=tiles,
        out_dtype=how.dtype,
        interpret=interpret,
    )


def _over_rows_by_kernel(how, kept, dy, rows_per_expert, interpret=False):
    group_of_tile, tiles = _tiles(how, len(dy), rows_per_expert)
    # Experts begin at multiples of 128 rows, so a tile covers one expert's rows only
    out = pallas.product_over_rows(
        *_transposed(_columns(*kept, how.power_of_two)),
        *_columns(dy),
        group_of_tile=group_of_tile,
        tiles=tiles,
        groups=len(rows_per_expert),
        interpret=interpret,
    )
    # The kernel writes nothing for an expert without rows
    return jnp.where((rows_per_expert > 0)[:, None, None], out, 0)


def _tiles(how, rows, rows_per_expert):
    """The expert of each tile of `rows` rows, int32[tiles], and how many tiles, int32[], have one."""
    if how.block % TERMS:
        raise ValueError(
            f"block={how.block} is no multiple of {TERMS}, as grouped_fp8's kernel needs it; pass such a "
            "block, or another implementation: ragged, pieces"
        )
    tile = math.gcd(how.block, pallas.GROUPED_ROWS)
    assert rows % tile == 0, "as ops.grouped_matmul.expert_layout makes them"
    tiles_e = rows_per_expert // tile
    # Tiles without an expert repeat the last one's number, and the kernel skips them
    experts = jnp.arange(len(tiles_e), dtype=jnp.int32)
    return jnp.repeat(experts, tiles_e, total_repeat_length=rows // tile), tiles_e.sum()


def _rounded_by_tokens(rows, power_of_two=False, *, rows_per_expert, block):
    """rows [r d], rounded in tiles of 128 x 1 that each cover one expert's rows only."""
    # Experts and their tiles start at multiples of step
    step = math.gcd(block, COLUMN[0])
    # An expert's number of rows is data, but shapes must not depend on it: a tile is a run of steps n
    ends = jnp.cumsum(rows_per_expert)
    first_n = jnp.arange(0, len(rows), step)
    start_n = jnp.pad(ends, (1, 0))[jnp.searchsorted(ends, first_n, side="right")]
    # A tile begins at an expert's first row and every 128 rows after it
    tile_n = jnp.cumsum((first_n - start_n) % COLUMN[0] == 0) - 1
    rows = jnp.clip(rows, -LARGEST, LARGEST)
    amax_nd = jnp.abs(rows).reshape(-1, step, rows.shape[-1]).max(1)
    amax_nd = jax.ops.segment_max(amax_nd, tile_n, len(first_n), indices_are_sorted=True)[tile_n]
    scale = jnp.repeat(tile_scale(amax_nd, power_of_two), step, axis=0)
    return (rows / scale).astype(jnp.float8_e4m3fn).astype(jnp.float32) * scale
