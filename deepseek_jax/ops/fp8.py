"""DeepSeek-V3's FP8 products for training: E4M3 everywhere, one scale a tile (arXiv:2412.19437, section 3.3).

Operands are rounded to E4M3 with their scales and multiplied in float32, on any chip. Up to float32 rounding,
this is what FP8 units compute that promote partial sums to float32 every 128 terms. It saves no time.
qwix 0.1.8 does not fit: its differentiable product tiles both operands alike (either weights in 128 x 1 or
activations in 128 x 128), and its quantiser refuses sizes that 128 does not divide and turns infinity into
NaN.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp

from deepseek_jax.ops.grouped_matmul import grouped_matmul

# The largest finite e4m3
MAX = 448.0
# Magnitudes saturate here: float32's own maximum may round up to infinity
LARGEST = 2.0**127
# Tiles of activations and gradients: ROW and COLUMN; of weights: BLOCK
ROW, COLUMN, BLOCK = (1, 128), (128, 1), (128, 128)

# Operands carry 28 bits of value times scale; a TPU's or GPU's default product drops most of them
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def quantize(x, tile: tuple[int, int], *, power_of_two: bool = False):
    """float[... i j] -> (float8_e4m3fn[... i j], float32[... ceil(i / tile[0]) ceil(j / tile[1])]).

    A tile's scale is its largest magnitude over 448, and 1 if the tile is all zeros. The released inference
    kernel has a floor of 1e-4 / 448 instead, under which small gradients would vanish. power_of_two rounds
    scales up to powers of two. Tiles cut off by an edge are padded with zeros. Infinity saturates, NaN stays
    NaN.
    """
    x = jnp.clip(x.astype(jnp.float32), -LARGEST, LARGEST)
    (*lead, i, j), (a, b) = x.shape, tile
    padded = jnp.pad(jnp.abs(x), [(0, 0)] * len(lead) + [(0, -i % a), (0, -j % b)])
    amax = padded.reshape(*lead, -(-i // a), a, -(-j // b), b).max((-3, -1))
    scale = _scale(amax, power_of_two)
    # No clip to MAX: rounding leaves a quotient at most a few ulps above 448, which E4M3 rounds to 448
    return (x / _spread(scale, tile, x.shape)).astype(jnp.float8_e4m3fn), scale


def dequantize(values, scale, tile: tuple[int, int]):
    """The results of quantize -> float32[... i j]. A checkpoint's weight_scale_inv is a scale for BLOCK."""
    return values.astype(jnp.float32) * _spread(scale, tile, values.shape)


def _scale(amax, power_of_two):
    # Chips flush subnormal numbers to zero, and a scale of 0 would divide by 0
    smallest = jnp.finfo(jnp.float32).tiny
    scale = jnp.where(amax > 0, jnp.maximum(amax / MAX, smallest), 1.0)
    if power_of_two:
        # Adding a full mantissa carries any mantissa bit into the exponent: it rounds up
        bits = jax.lax.bitcast_convert_type(scale, jnp.int32)
        scale = jax.lax.bitcast_convert_type((bits + 0x7FFFFF) & ~0x7FFFFF, jnp.float32)
    return scale


def _spread(scale, tile, shape):
    full = jnp.repeat(jnp.repeat(scale, tile[0], axis=-2), tile[1], axis=-1)
    return full[..., : shape[-2], : shape[-1]]


def _rounded(x, tile, power_of_two=False):
    return dequantize(*quantize(x, tile, power_of_two=power_of_two), tile)


def _rounded_apart(x, tile, parts):
    """x [... i j], `parts` matrices side by side, rounded in tiles that each cover one matrix only."""
    *lead, j = x.shape
    # Checkpoints store the matrices apart, so none of their scales covers columns of two
    apart = jnp.moveaxis(x.reshape(*lead, parts, j // parts), -2, -3)
    return jnp.moveaxis(_rounded(apart, tile), -3, -2).reshape(x.shape)


def fp8_dot(spec: str, x, w, out_dtype=None, *, power_of_two: bool = False):
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
    up-projection).
    """
    out = _dot(spec, power_of_two, x.astype(jnp.float32), w)
    return out.astype(out_dtype or x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dot(spec, power_of_two, x, w):
    return _dot_forward(spec, power_of_two, x, w)[0]


def _dot_forward(spec, power_of_two, x, w):
    of_x, of_w, of_y = _groups(spec)
    # Wgrad gets these FP8 values, not x (section 3.5.2)
    kept = quantize(_matrix(x, *of_x), ROW, power_of_two=power_of_two)
    w_bkn = _rounded_apart(_matrix(w, *of_w), BLOCK, _parts(of_w, w))
    y = _einsum("bmk,bkn->bmn", dequantize(*kept, ROW), w_bkn)
    return _tensor(y, *of_y, _sizes(of_x, x) | _sizes(of_w, w)), (kept, w)


def _dot_backward(spec, power_of_two, saved, dy):
    (kept, w), (of_x, of_w, of_y) = saved, _groups(spec)
    sizes = _sizes(of_w, w) | _sizes(of_y, dy)
    parts, dy_bmn = _parts(of_w, w), _matrix(dy, *of_y)
    w_bkn = _rounded_apart(_matrix(w, *of_w), BLOCK, parts)
    # Tiles run along the contracted axis: n in Dgrad, tokens in Wgrad. w's square blocks serve either
    dx = _einsum("bmn,bkn->bmk", _rounded_apart(dy_bmn, ROW, parts), w_bkn)
    x_bmk = _rounded(dequantize(*kept, ROW), COLUMN, power_of_two)
    dw = _einsum("bmk,bmn->bkn", x_bmk, _rounded(dy_bmn, COLUMN))
    return _tensor(dx, *of_x, sizes), _tensor(dw, *of_w, sizes).astype(w.dtype)


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

    parts: the number of Linear layers whose columns are side by side in kernel [e d n]. Each expert's matrix
    is rounded once, before the product. Wgrad's tiles of 128 tokens restart with every expert. Rows past the
    sum of rows_per_expert share no tile with an expert.
    """
    out = _grouped(
        (block, implementation),
        power_of_two,
        parts,
        rows.astype(jnp.float32),
        kernel,
        rows_per_expert,
    )
    return out.astype(rows.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _grouped(how, power_of_two, parts, rows, kernel, rows_per_expert):
    return _grouped_forward(how, power_of_two, parts, rows, kernel, rows_per_expert)[0]


def _grouped_forward(how, power_of_two, parts, rows, kernel, rows_per_expert):
    block, implementation = how
    kept = quantize(rows, ROW, power_of_two=power_of_two)
    # As for _einsum: a default product would drop bits of value times scale
    with jax.default_matmul_precision("highest"):
        out = grouped_matmul(
            dequantize(*kept, ROW),
            _rounded_apart(kernel, BLOCK, parts),
            rows_per_expert,
            implementation=implementation,
        )
    return out, (kept, kernel, rows_per_expert)


def _grouped_backward(how, power_of_two, parts, saved, dy):
    (block, implementation), (kept, kernel, rows_per_expert) = how, saved
    product = functools.partial(
        grouped_matmul, rows_per_expert=rows_per_expert, implementation=implementation
    )
    tokens = functools.partial(_rounded_by_tokens, rows_per_expert=rows_per_expert, block=block)
    rows = dequantize(*kept, ROW)
    # The product is bilinear: the gradient by one operand depends only on the other operand
    with jax.default_matmul_precision("highest"):
        _, dgrad = jax.vjp(lambda rows: product(rows, _rounded_apart(kernel, BLOCK, parts)), rows)
        _, wgrad = jax.vjp(
            lambda kernel: product(tokens(rows, power_of_two), kernel), kernel.astype(jnp.float32)
        )
        d_rows = dgrad(_rounded_apart(dy, ROW, parts))[0]
        d_kernel = wgrad(tokens(dy))[0]
    return d_rows, d_kernel.astype(kernel.dtype), None


_grouped.defvjp(_grouped_forward, _grouped_backward)


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
    scale = jnp.repeat(_scale(amax_nd, power_of_two), step, axis=0)
    return (rows / scale).astype(jnp.float8_e4m3fn).astype(jnp.float32) * scale
