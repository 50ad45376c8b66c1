"""E4M3 rounding and products on a TPU: what belongs to a tile of 128 stays in vector memory.

A chip that does not multiply FP8 multiplies the values as bfloat16, which holds them exactly, in
one pass: see "fp8_operands" in ops.platform. tokamax 0.0.12 has such kernels, but only in private
modules.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from deepseek_jax.ops.platform import form_of

# Terms of a sum that share a scale
TERMS = 128
# Magnitudes saturate here
LARGEST = 2.0**127
# A block of scales in memory has as many lanes and sublanes as a vector register
LANES, SUBLANES = 128, 8
# Rows of a tile of the left operand: of a plain product, and of a product with rows by expert
DENSE_ROWS, GROUPED_ROWS = 512, 256
# float32 numbers in a tile of the result
TILE = 2**18
# Rows and columns of a tile of a product over rows
OVER_ROWS = 512
# Rows that are rounded at once, and the most columns
ROUNDED_ROWS, ROUNDED_COLUMNS = 256, 1024


def is_whole(x, tile):
    """Return whether tiles cover x [... i j] evenly, as `quantize` needs it."""
    i, j = x.shape[-2:]
    return i % tile[0] == 0 and j % TERMS == 0


def quantize(x, tile, of_amax, scale=None, interpret: bool = False):
    """Compute ops.fp8.quantize in one pass over memory.

    Args:
        of_amax: Function from a tile's largest magnitude to its scale.
        interpret: Emulate the kernel, on any machine.

    Raises:
        ValueError: If tiles do not cover x evenly.
    """
    *lead, i, j = x.shape
    if not is_whole(x, tile):
        raise ValueError(
            f"quantize's kernel needs x in whole tiles of {tile} and columns in multiples of {TERMS}, and x "
            f"is {i} x {j}; pass such sizes, or another implementation: plain"
        )
    rows, columns = ROUNDED_ROWS, _columns(j, ROUNDED_COLUMNS)
    row_scale_spec = pl.BlockSpec((rows, LANES), lambda i, s: (i, s * columns // TERMS // LANES))
    in_specs = [pl.BlockSpec((rows, columns), lambda i, s: (i, s))]
    arrays = [x.reshape(-1, j)]
    if scale is not None:
        in_specs.append(row_scale_spec)
        arrays.append(_whole_tiles(scale.reshape(-1, scale.shape[-1]), 1, LANES))
    num_rows = len(arrays[0])
    scales_shape: tuple[int, ...]
    if tile[0] == 1:
        scales_shape, scales_spec = (num_rows, j // TERMS + -(j // TERMS) % LANES), row_scale_spec
    else:
        # A row of scales for each 128 rows. In a square tile its scales are equal
        scales_shape = -(-num_rows // rows), rows // TERMS, j
        scales_spec = pl.BlockSpec((None, rows // TERMS, columns), lambda i, s: (i, 0, s))
    values, scales = pl.pallas_call(
        functools.partial(_quantize_kernel, tile=tile, of_amax=of_amax),
        grid=(-(-num_rows // rows), j // columns),
        in_specs=in_specs,
        out_specs=[in_specs[0], scales_spec],
        out_shape=[
            jax.ShapeDtypeStruct((num_rows, j), jnp.float8_e4m3fn),
            jax.ShapeDtypeStruct(scales_shape, jnp.float32),
        ],
        cost_estimate=pl.CostEstimate(
            flops=0, bytes_accessed=num_rows * j * (x.dtype.itemsize + 1), transcendentals=0
        ),
        name="fp8_quantize",
        interpret=interpret,
    )(*arrays)
    scales = scales.reshape(-1, scales.shape[-1])[: num_rows // tile[0]]
    scales = scales[:, : j // TERMS] if tile[0] == 1 else scales[:, :: tile[1]]
    return values.reshape(x.shape), scales.reshape(*lead, i // tile[0], -1)


def _quantize_kernel(x, *refs, tile, of_amax):
    """Round some rows and columns.

    refs: the scales of x's rows if x is in E4M3, then the two results.
    """
    *row_scale, values, scales = refs
    rows, columns = x.shape
    first_block = pl.program_id(1) * (columns // TERMS)
    lanes = jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)
    for block in range(columns // TERMS):
        column_slice, lane = pl.ds(block * TERMS, TERMS), (first_block + block) % LANES
        block_ij = x[:, column_slice].astype(jnp.float32)
        if row_scale:
            block_ij *= _lane(row_scale[0], lanes == lane)
        block_ij = jnp.clip(block_ij, -LARGEST, LARGEST)
        if tile[0] == 1:
            scale = of_amax(jnp.abs(block_ij).max(1, keepdims=True))
            values[:, column_slice] = (block_ij / scale).astype(values.dtype)
            scales[...] = jnp.where(lanes == lane, scale, scales[...])
            continue
        for row_tile in range(rows // TERMS):
            row_slice = pl.ds(row_tile * TERMS, TERMS)
            tile_ij = block_ij[row_tile * TERMS : (row_tile + 1) * TERMS]
            amax = jnp.abs(tile_ij).max(0, keepdims=True)
            if tile[1] == TERMS:
                amax = jnp.broadcast_to(amax.max(1, keepdims=True), amax.shape)
            scale = of_amax(amax)
            values[row_slice, column_slice] = (tile_ij / scale).astype(values.dtype)
            scales[pl.ds(row_tile, 1), column_slice] = scale


def _lane(ref, is_lane):
    """Return one lane of each row as [rows 1]: a lane cannot be read by its number."""
    return jnp.where(is_lane, ref[...], 0).sum(axis=1, keepdims=True)


def dense_rows(m: int):
    """Return the rows of a tile for m rows that are all multiplied by the same matrix.

    A power of two, at least a register's 32 and at most DENSE_ROWS.
    """
    return min(DENSE_ROWS, max(32, 1 << (m - 1).bit_length()))


def product(left, right, *, group_of_tile, tiles, out_dtype="float32", interpret: bool = False):
    """Multiply each tile of rows by the matrix of its group: out_dtype[r n].

    Args:
        left: e4m3[r k] and its scales float32[r k/128], with k a multiple of 128.
        right: e4m3[g k n] and its scales float32[g k/128 n].
        group_of_tile: int32[r / rows of a tile].
        tiles: int32[], how many tiles have a group. Results of the others are zeros.
    """
    (left, left_scale), (right, right_scale) = left, right
    (r, k), n = left.shape, right.shape[-1]
    rows = r // len(group_of_tile)
    terms, columns = _terms(k), _columns(n, TILE // rows)
    right, right_scale = (_whole_tiles(x, -1, columns) for x in (right, right_scale))
    left_scale = _whole_tiles(left_scale, -1, LANES)
    right_scale = _whole_tiles(right_scale, -2, SUBLANES)

    def row_tile(i, tiles):
        # A tile without a group reads nothing new
        return jnp.minimum(i, jnp.maximum(tiles[0] - 1, 0))

    def scale_tile(step, per_tile):
        """Return the index of the tile of scales that has this step's blocks."""
        return step * (terms // TERMS) // per_tile

    out = pl.pallas_call(
        functools.partial(_product_kernel, blocks=terms // TERMS),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(right.shape[-1] // columns, len(group_of_tile), k // terms),
            in_specs=[
                (
                    pl.BlockSpec((rows, terms), lambda j, i, s, g, t: (row_tile(i, t), s)),
                    pl.BlockSpec(
                        (rows, LANES), lambda j, i, s, g, t: (row_tile(i, t), scale_tile(s, LANES))
                    ),
                ),
                (
                    pl.BlockSpec((None, terms, columns), lambda j, i, s, g, t: (g[i], s, j)),
                    pl.BlockSpec(
                        (None, SUBLANES, columns),
                        lambda j, i, s, g, t: (g[i], scale_tile(s, SUBLANES), j),
                    ),
                ),
            ],
            out_specs=pl.BlockSpec((rows, columns), lambda j, i, s, g, t: (i, j)),
            scratch_shapes=[pltpu.VMEM((rows, columns), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((r, right.shape[-1]), out_dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary")
        ),
        cost_estimate=_cost(r, k, n, (left, right), out_dtype),
        name="fp8_gmm" if len(right) > 1 else "fp8_product",
        interpret=interpret,
    )(group_of_tile, _one(tiles), (left, left_scale), (right, right_scale))
    return out[:, :n]


def product_over_rows(left, right, *, group_of_tile, tiles, groups, interpret: bool = False):
    """Sum left's columns times right's rows over the rows of each group: float32[groups k n].

    Nothing is written for a group without tiles.

    Args:
        left: e4m3[k r] and its scales float32[k r/128].
        right: e4m3[r n] and its scales float32[r/128 n].
        group_of_tile: As for `product`, ascending.
        tiles: As for `product`.
    """
    (left, left_scale), (right, right_scale) = left, right
    (k, r), n = left.shape, right.shape[-1]
    terms = r // len(group_of_tile)
    rows, columns = _columns(k, OVER_ROWS), _columns(n, OVER_ROWS)
    left, left_scale = (_whole_tiles(x, 0, rows) for x in (left, left_scale))
    right, right_scale = (_whole_tiles(x, 1, columns) for x in (right, right_scale))
    left_scale = _whole_tiles(left_scale, 1, LANES)
    right_scale = _whole_tiles(right_scale, 0, SUBLANES)

    def row_tile(s, tiles):
        return jnp.minimum(s, jnp.maximum(tiles[0] - 1, 0))

    def scale_tile(s, tiles, per_tile):
        return row_tile(s, tiles) * (terms // TERMS) // per_tile

    out = pl.pallas_call(
        functools.partial(_over_rows_kernel, blocks=terms // TERMS),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(len(left) // rows, right.shape[1] // columns, len(group_of_tile)),
            in_specs=[
                (
                    pl.BlockSpec((rows, terms), lambda i, j, s, g, t: (i, row_tile(s, t))),
                    pl.BlockSpec((rows, LANES), lambda i, j, s, g, t: (i, scale_tile(s, t, LANES))),
                ),
                (
                    pl.BlockSpec((terms, columns), lambda i, j, s, g, t: (row_tile(s, t), j)),
                    pl.BlockSpec(
                        (SUBLANES, columns), lambda i, j, s, g, t: (scale_tile(s, t, SUBLANES), j)
                    ),
                ),
            ],
            out_specs=pl.BlockSpec((None, rows, columns), lambda i, j, s, g, t: (g[s], i, j)),
            scratch_shapes=[pltpu.VMEM((rows, columns), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((groups, len(left), right.shape[1]), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(r, k, n, (left, right), jnp.float32),
        name="fp8_tgmm",
        interpret=interpret,
    )(group_of_tile, _one(tiles), (left, left_scale), (right, right_scale))
    return out[:, :k, :n]


def _product_kernel(group_of_tile, num_tiles, left, right, out, sums, *, blocks):
    """Add the next terms to one tile of the result."""
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)

    @pl.when(pl.program_id(1) < num_tiles[0])
    def _():
        _add_blocks(sums, left, right, step * blocks, blocks)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        out[...] = sums[...].astype(out.dtype)


def _over_rows_kernel(group_of_tile, num_tiles, left, right, out, sums, *, blocks):
    """Add the next rows to one tile of a group's result."""
    step, last_step = pl.program_id(2), num_tiles[0] - 1
    group = group_of_tile[step]

    @pl.when((step == 0) | (group != group_of_tile[jnp.maximum(step - 1, 0)]))
    def _():
        sums[...] = jnp.zeros_like(sums)

    @pl.when(step <= last_step)
    def _():
        _add_blocks(sums, left, right, step * blocks, blocks)

    @pl.when(
        (step == last_step)
        | (group != group_of_tile[jnp.minimum(step + 1, pl.num_programs(2) - 1)])
    )
    def _():
        out[...] = sums[...]


def _add_blocks(sums, left, right, first_block, blocks):
    """Add these blocks of terms to a tile of the result.

    first_block: the number of the first block among all blocks.
    """
    (left, left_scale), (right, right_scale) = left, right
    lanes = jax.lax.broadcasted_iota(jnp.int32, left_scale.shape, 1)
    for block in range(blocks):
        terms = pl.ds(block * TERMS, TERMS)
        operands = (x.astype(form_of("fp8_operands")) for x in (left[:, terms], right[terms, :]))
        partial = jnp.dot(*operands, preferred_element_type=jnp.float32)
        row_scale = _lane(left_scale, lanes == (first_block + block) % LANES)
        column_scale = right_scale[pl.ds((first_block + block) % SUBLANES, 1), :]
        # Scales of tiles with infinities multiply to infinity, but a sum of 0 must stay 0
        scale = jnp.minimum(row_scale * column_scale, jnp.finfo(jnp.float32).max)
        sums[...] += partial * scale


def _terms(k):
    """Return the contracted terms of a tile: blocks that divide a tile of scales."""
    return next(TERMS * blocks for blocks in (8, 4, 2, 1) if k % (TERMS * blocks) == 0)


def _columns(n, max_columns):
    """Return the columns of a tile: `max_columns`, halved until it divides n's whole lanes."""
    assert max_columns % LANES == 0
    padded_columns = n + -n % LANES
    columns = max_columns
    while padded_columns % columns:
        columns //= 2
    return columns


def _whole_tiles(x, axis, size):
    padding = [(0, 0)] * x.ndim
    padding[axis] = 0, -x.shape[axis] % size
    return jnp.pad(x, padding)


def _one(tiles):
    return jnp.asarray(tiles, jnp.int32).reshape(1)


def _cost(rows, terms, columns, operands, out_dtype):
    out_bytes = rows * columns * jnp.dtype(out_dtype).itemsize
    return pl.CostEstimate(
        flops=2 * rows * terms * columns,
        bytes_accessed=sum(x.size for x in operands) + out_bytes,
        transcendentals=0,
    )
