"""Products of E4M3 values in blocks of 128 terms (arXiv:2412.19437, section 3.3).

A block's values are multiplied without their scales. The block's sum is multiplied by the scales of
both operands, and blocks add up in float32. FP8 units that promote partial sums every 128 terms
compute the same.

Tests: tests/ops/test_fp8.py, tests/ops/pallas/test_fp8.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.ops.fp8 import BLOCK, COLUMN, ROW, TERMS, quantize
from deepseek_jax.ops.pallas import fp8 as pallas
from deepseek_jax.ops.platform import choose

# Values times scales carry 28 bits, and a GPU's default product drops most of them
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Blocks(NamedTuple):
    """One operand of a product, in blocks of its contracted axis.

    Attributes:
        values: E4M3. [... m k] of a left operand, [... k n] of a right operand.
        scale: float32, one for each block. [... m blocks] of a left operand, [... blocks n] of a
            right operand.
    """

    values: jax.Array
    scale: jax.Array


def rounded_rows(x, num_parts=1, power_of_two=False):
    """Round x [... m k] to a left operand, in tiles of 1 x 128, none across two parts of k."""
    tile_parts = _that_matter(x, num_parts)
    values, scale = quantize(_apart(x, tile_parts), ROW, power_of_two=power_of_two)
    return Blocks(_together(values), _together(scale))


def rounded_columns(x, scale=None, power_of_two=False):
    """Round x [... k n] to a right operand, in tiles of 128 x 1.

    Args:
        scale: The ROW scales of x if x holds E4M3 values, see ops.fp8.quantize.
    """
    return Blocks(*quantize(x, COLUMN, power_of_two=power_of_two, scale=scale))


def rounded_weights(w, num_parts):
    """Round w [... k n] to a right operand, in tiles of 128 x 128, none across two parts of n."""
    tile_parts = _that_matter(w, num_parts)
    values, scale = quantize(_apart(w, tile_parts), BLOCK)
    scale = _each(scale, -1, values.shape[-1])
    return Blocks(_together(values), _together(scale))


def rounded_transpose(w, num_parts):
    """Return the transpose [... n k] of rounded_weights' values as a right operand."""
    tile_parts = _that_matter(w, num_parts)
    values, scale = quantize(_apart(w, tile_parts), BLOCK)
    scale = _each(scale, -2, values.shape[-2])
    return transposed(Blocks(_together(values), _together(scale)))


def _that_matter(x, num_parts):
    """Return 1 if parts end where tiles end anyway, else num_parts."""
    return 1 if x.shape[-1] // num_parts % TERMS == 0 else num_parts


def transposed(blocks):
    """Turn a left operand into the transposed product's right one, and the other way round."""
    return Blocks(*(jnp.swapaxes(array, -1, -2) for array in blocks))


# Linear layers that are side by side in a matrix are separate in checkpoints: no scale covers two
def _apart(x, num_parts):
    """Separate parts of the last axis: [... i num_parts*j] -> [... num_parts i j]."""
    *lead_shape, j = x.shape
    return jnp.moveaxis(x.reshape(*lead_shape, num_parts, j // num_parts), -2, -3)


def _together(x):
    x = jnp.moveaxis(x, -3, -2)
    return x.reshape(*x.shape[:-2], -1)


def _each(scale, axis, size):
    """Expand the blocks' scales to one scale for each term of an axis."""
    term_scales = jnp.repeat(scale, TERMS, axis=axis)
    return jax.lax.slice_in_dim(term_scales, 0, size, axis=axis)


def block_product(
    left: Blocks,
    right: Blocks,
    *,
    runs: int = 1,
    out_dtype="float32",
    implementation: str | None = None,
):
    """Multiply left [g m k] by right [g k n], block by block: out_dtype[g m n].

    Args:
        runs: Number of equal runs in the contracted axis. Blocks restart with each run, and the
            last block of a run may be short.
        implementation: "dequantized" multiplies values times scales in float32 at full precision,
            which is the same up to float32's rounding. "kernel" is ops.pallas.fp8 for TPU, and
            "interpreted" emulates it. None takes the choice of ops.platform.
    """
    product = choose(
        "block_product",
        implementation,
        dequantized=_plain,
        kernel=_by_kernel,
        interpreted=functools.partial(_by_kernel, interpret=True),
    )
    return product(left, right, runs, out_dtype)


def _plain(left, right, runs, out_dtype):
    out = _einsum("gmk,gkn->gmn", dequantized(left, -1, runs), dequantized(right, -2, runs))
    return out.astype(out_dtype)


def dequantized(blocks, axis, runs):
    """Multiply values by their scales, in float32.

    Args:
        axis: The contracted axis, -1 or -2.
        runs: As in `block_product`.
    """
    values, scale = blocks
    run_length = values.shape[axis] // runs
    term_scales = [_each(run, axis, run_length) for run in jnp.split(scale, runs, axis)]
    return values.astype(jnp.float32) * jnp.concatenate(term_scales, axis)


def _by_kernel(left, right, runs, out_dtype, interpret=False):
    (g, m), n = left.values.shape[:2], right.values.shape[-1]
    tile_rows = pallas.dense_rows(m)
    values, scale = full_blocks(left, -1, runs)
    padded_arrays = [
        jnp.pad(x, [(0, 0), (0, -m % tile_rows), (0, 0)]).reshape(-1, x.shape[-1])
        for x in (values, scale)
    ]
    num_tiles = len(padded_arrays[0]) // tile_rows
    out = pallas.product(
        padded_arrays,
        full_blocks(right, -2, runs),
        group_of_tile=jnp.arange(num_tiles) // (num_tiles // g),
        tiles=num_tiles,
        out_dtype=out_dtype,
        interpret=interpret,
    )
    return out.reshape(g, -1, n)[:, :m]


def full_blocks(blocks, axis, runs):
    """Fill up every run of the contracted axis with zeros to whole blocks.

    Args:
        axis: The contracted axis, -1 or -2.
        runs: As in `block_product`.
    """
    values, scale = blocks
    num_missing = -(values.shape[axis] // runs) % TERMS
    if not num_missing:
        return blocks
    padding = [(0, 0)] * values.ndim
    padding[axis] = 0, num_missing
    filled_runs = [jnp.pad(run, padding) for run in jnp.split(values, runs, axis)]
    return Blocks(jnp.concatenate(filled_runs, axis), scale)
