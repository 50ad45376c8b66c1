"""Experts' matrix products in FP8: ops.fp8_dot on each expert's own rows.

Tests: tests/ops/test_gated_mlp.py, tests/ops/test_fp8.py.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.ops import fp8
from deepseek_jax.ops import grouped_matmul as grouped
from deepseek_jax.ops.fp8 import COLUMN, LARGEST, ROW, TERMS, tile_scale
from deepseek_jax.ops.fp8_blocks import (
    dequantized,
    full_blocks,
    rounded_columns,
    rounded_rows,
    rounded_transpose,
    rounded_weights,
    transposed,
)
from deepseek_jax.ops.pallas import fp8 as pallas
from deepseek_jax.ops.platform import choose, size_of


class _Grouped(NamedTuple):
    """Options of a grouped_fp8 product: its arguments, and the rows' dtype."""

    block: int
    implementation: str | None
    power_of_two: bool
    num_parts: int
    dtype: str


def expert_block(choices: int, n_routed_experts: int):
    """Return the block size of an ExpertLayout for grouped_fp8.

    It is the machine's "fp8_expert_block" (ops.platform). Without one, it is the block_size of
    ops.grouped_matmul, which explains the arguments.
    """
    return size_of("fp8_expert_block") or grouped.block_size(choices, n_routed_experts)


def grouped_fp8(
    rows,
    kernel,
    rows_per_expert,
    *,
    block: int,
    implementation: str | None = None,
    power_of_two: bool = False,
    num_parts: int = 1,
):
    """Multiply each row by its expert's matrix with fp8_dot's numerics: rows [r d] -> [r n].

    The interface is ops.grouped_matmul.grouped_matmul's; the result equals one fp8_dot for each
    expert and part. Each expert's matrix is rounded once, before the product. Wgrad's tiles of 128
    tokens restart with every expert. Rows past the sum of rows_per_expert share no tile with an
    expert.

    Args:
        rows: [r d], sorted by expert.
        kernel: [e d n].
        rows_per_expert: int32[e], multiples of block.
        block: The block size of the rows' ExpertLayout.
        implementation: "kernel" is ops.pallas.fp8 for TPU, and "interpreted" emulates it. "ragged"
            and "pieces" multiply values times scales by the forms of grouped_matmul with these
            names. None takes the choice of ops.platform.
        power_of_two: As in fp8_dot.
        num_parts: Number of Linear layers with their columns side by side in kernel.

    Raises:
        ValueError: If "kernel" or "interpreted" gets a block that is not a multiple of 128.
    """
    options = _Grouped(block, implementation, power_of_two, num_parts, rows.dtype.name)
    return _grouped(options, rows, kernel, rows_per_expert)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped(options, rows, kernel, rows_per_expert):
    return _grouped_forward(options, rows, kernel, rows_per_expert)[0]


def _grouped_forward(options, rows, kernel, rows_per_expert):
    row_blocks = rounded_rows(rows, power_of_two=options.power_of_two)
    out = _form(options).product(
        options, row_blocks, rounded_weights(kernel, options.num_parts), rows_per_expert
    )
    return out, (row_blocks, kernel, rows_per_expert)


def _grouped_backward(options, saved, dy):
    (row_blocks, kernel, rows_per_expert), form = saved, _form(options)
    kernel_blocks = rounded_transpose(kernel, options.num_parts)
    d_rows = form.product(
        options,
        rounded_rows(dy, options.num_parts),
        kernel_blocks,
        rows_per_expert,
        runs=options.num_parts,
    )
    d_kernel = form.over_rows(options, row_blocks, dy, rows_per_expert)
    return d_rows, d_kernel.astype(kernel.dtype), None


_grouped.defvjp(_grouped_forward, _grouped_backward)


class _Form(NamedTuple):
    """The two products of one implementation of grouped_fp8.

    Attributes:
        product: product(options, left, right, rows_per_expert, runs=1), for Fprop and Dgrad.
        over_rows: over_rows(options, row_blocks, dy, rows_per_expert), for Wgrad.
    """

    product: Callable
    over_rows: Callable


def _form(options):
    return choose(
        "grouped_fp8",
        options.implementation,
        ragged=_dequantized("ragged"),
        pieces=_dequantized("pieces"),
        kernel=_Form(_grouped_by_kernel, _over_rows_by_kernel),
        interpreted=_Form(
            functools.partial(_grouped_by_kernel, interpret=True),
            functools.partial(_over_rows_by_kernel, interpret=True),
        ),
    )


def _dequantized(form_name):
    """Build the _Form that multiplies values times scales by grouped_matmul's form `form_name`."""
    return _Form(
        functools.partial(_grouped_dequantized, form_name),
        functools.partial(_over_rows_dequantized, form_name),
    )


def _grouped_dequantized(form_name, options, left, right, rows_per_expert, runs=1):
    out = grouped.grouped_matmul(
        dequantized(left, -1, runs),
        dequantized(right, -2, runs),
        rows_per_expert,
        implementation=form_name,
    )
    return out.astype(options.dtype)


def _over_rows_dequantized(form_name, options, row_blocks, dy, rows_per_expert):
    round_by_tokens = functools.partial(
        _rounded_by_tokens, rows_per_expert=rows_per_expert, block=options.block
    )
    return grouped.product_over_rows(
        round_by_tokens(
            fp8.dequantize(row_blocks.values, row_blocks.scale, ROW), options.power_of_two
        ),
        round_by_tokens(dy.astype(jnp.float32)),
        rows_per_expert,
        implementation=form_name,
    )


def _grouped_by_kernel(options, left, right, rows_per_expert, runs=1, interpret=False):
    group_of_tile, num_tiles = _tiles(options, len(left.values), rows_per_expert)
    return pallas.product(
        full_blocks(left, -1, runs),
        full_blocks(right, -2, runs),
        group_of_tile=group_of_tile,
        tiles=num_tiles,
        out_dtype=options.dtype,
        interpret=interpret,
    )


def _over_rows_by_kernel(options, row_blocks, dy, rows_per_expert, interpret=False):
    group_of_tile, num_tiles = _tiles(options, len(dy), rows_per_expert)
    # Experts begin at multiples of 128 rows, so a tile covers one expert's rows only
    out = pallas.product_over_rows(
        transposed(rounded_columns(row_blocks.values, row_blocks.scale, options.power_of_two)),
        rounded_columns(dy),
        group_of_tile=group_of_tile,
        tiles=num_tiles,
        groups=len(rows_per_expert),
        interpret=interpret,
    )
    # The kernel writes nothing for an expert without rows
    return jnp.where((rows_per_expert > 0)[:, None, None], out, 0)


def _tiles(options, rows, rows_per_expert):
    """Return the expert of each tile, int32[tiles], and how many tiles have an expert, int32[]."""
    if options.block % TERMS:
        raise ValueError(
            f"block={options.block} is no multiple of {TERMS}, as grouped_fp8's kernel needs it; pass such a "
            "block, or another implementation: ragged, pieces"
        )
    tile_rows = math.gcd(options.block, pallas.GROUPED_ROWS)
    assert rows % tile_rows == 0, "as ops.grouped_matmul.expert_layout makes them"
    tiles_e = rows_per_expert // tile_rows
    # Tiles without an expert repeat the last number; the kernel skips them
    experts = jnp.arange(len(tiles_e), dtype=jnp.int32)
    return jnp.repeat(experts, tiles_e, total_repeat_length=rows // tile_rows), tiles_e.sum()


def _rounded_by_tokens(rows, power_of_two=False, *, rows_per_expert, block):
    """Round rows [r d] to E4M3 and back to float32, in tiles of 128 x 1.

    Each tile covers the rows of one expert only.
    """
    # Experts and their tiles start at multiples of `step`
    step = math.gcd(block, COLUMN[0])
    # Shapes must not depend on rows_per_expert, which is data, so a tile is a run of steps (letter
    # n)
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
