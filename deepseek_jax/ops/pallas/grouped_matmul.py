"""Grouped products by JAX's megablox kernels for TPU (arXiv:2211.15841).

A tile of rows is multiplied by one expert's matrix at a time.
"""

import math

import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

# Rows, contracted columns and columns of a tile: they fit 16 MiB of vector memory
TILES = (512, 1024, 1024)
# The tile of a product over rows, whose sums are float32
TILES_OVER_ROWS = (512, 512, 512)
# Rows of the smallest tile
LEAST_ROWS = 128
# Narrower matrices would fill few lanes
NARROWEST = 64


def takes(rows, *columns):
    """Return whether the kernel multiplies as ops.grouped_matmul promises.

    It would round float32 to bfloat16, and narrow matrices would fill few lanes.

    Args:
        *columns: The two sizes of an expert's matrix.
    """
    return rows.dtype == jnp.bfloat16 and min(columns) >= NARROWEST


def product(rows, kernel, rows_per_expert, transposed=False, interpret=False):
    """Multiply rows [r d] by their expert's matrix: -> [r f] in rows' dtype, summed in float32.

    Rows past the experts' rows are not written: they may hold anything, also NaN.

    Args:
        kernel: [e d f], or [e f d] if transposed.
    """
    out_columns = kernel.shape[1 if transposed else 2]
    tiles = _fitting(TILES, (*rows.shape, out_columns))
    out = gmm(
        _whole_tiles(rows, tiles[0]),
        kernel,
        rows_per_expert,
        rows.dtype,
        tiles,
        transpose_rhs=transposed,
        interpret=interpret,
    )
    return out[: len(rows)]


def product_over_rows(left, right, rows_per_expert, dtype, interpret=False):
    """Return left^T right over each expert's rows: left [r d], right [r f] -> dtype[e d f].

    Rows past the experts' rows add to no result.
    """
    tiles = _fitting(TILES_OVER_ROWS, (*left.shape, right.shape[1]))
    left, right = (_whole_tiles(x, tiles[0]) for x in (left, right))
    return tgmm(left.T, right, rows_per_expert, dtype, tiles, interpret=interpret)


def _fitting(tiles, axis_sizes):
    rows, *columns = (min(tile, size) for tile, size in zip(tiles, axis_sizes, strict=True))
    if axis_sizes[0] % LEAST_ROWS == 0:
        # Rows fill whole tiles of ops.platform's row_tiles: larger tiles would need padding
        rows = math.gcd(rows, axis_sizes[0])
    return rows, *columns


def _whole_tiles(rows, tile):
    """Pad rows to whole tiles: the kernels refuse a last tile that is not full."""
    padding = -len(rows) % tile
    return jnp.pad(rows, ((0, padding), (0, 0))) if padding else rows
