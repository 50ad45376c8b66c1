"""Grouped matrix products: each row, sorted by expert, times its expert's matrix.

No row is dropped, and experts without rows cost nothing.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.ops.cpu import grouped_matmul as cpu
from deepseek_jax.ops.pallas import grouped_matmul as pallas
from deepseek_jax.ops.platform import choose, precision_of, size_of

ALONG_ROWS = jax.lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))
ALONG_COLUMNS = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))
OVER_ROWS = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())


class ExpertLayout(NamedTuple):
    """Where each (token, choice) stands among rows that are sorted by expert.

    Each expert's rows are padded to whole blocks.

    Attributes:
        token_of_row: int32[rows], m on padding.
        row_of_choice: int32[m a].
        rows_per_expert: int32[e], with padding.
    """

    token_of_row: jax.Array
    row_of_choice: jax.Array
    rows_per_expert: jax.Array


def block_size(choices: int, n_routed_experts: int):
    """Return the block size of an ExpertLayout: each expert's rows are padded to a multiple of it.

    It is a power of two. It is at most the mean number of rows per expert, so that padding at most
    doubles the rows, and at most the machine's "expert_block" (ops.platform).

    Args:
        choices: Number of (token, choice) pairs, m * a.
    """
    share = max(choices // n_routed_experts, 1)
    return min(1 << (share.bit_length() - 1), size_of("expert_block"))


def whole_tiles(rows: int):
    """Round a number of rows up to whole tiles of the machine's grouped product."""
    small_tile, large_tile = size_of("row_tiles")
    # Decoding has few rows, and a large tile would nearly double them
    tile = small_tile if rows < 8 * large_tile else large_tile
    return -(-rows // tile) * tile


def expert_layout(experts, n_routed_experts: int, block: int):
    """Lay out experts int32[m a] as ExpertLayout.

    The number of rows depends only on shapes. The id n_routed_experts stands for no expert: its
    rows come after all others, and their products are undefined.
    """
    m, a = experts.shape
    # Enough blocks for the worst split over experts
    num_blocks = (m * a + min(n_routed_experts, m * a) * (block - 1)) // block
    # z: the experts, then the id for no expert
    count_z = counts(experts, n_routed_experts + 1)
    rows_e = -(-count_z[:-1] // block) * block
    first_z = jnp.cumsum(jnp.pad(rows_e, (1, 0)))
    return _laid_out(experts, count_z, rows_e, first_z, num_blocks * block)


def capacity_layout(groups, n_groups: int, capacity: int):
    """Lay out groups int32[m a] as ExpertLayout with `capacity` rows for each group.

    The caller ensures that no group has more.
    """
    rows_n = jnp.full(n_groups, capacity, jnp.int32)
    count_n = counts(groups, n_groups)
    return _laid_out(groups, count_n, rows_n, jnp.arange(n_groups) * capacity, n_groups * capacity)


def counts(groups, n_groups: int):
    """Count how often each group is chosen: int32[...] -> int32[n_groups].

    Each entry of groups is below n_groups.
    """
    return jnp.zeros(n_groups, jnp.int32).at[groups.reshape(-1)].add(1)


def _laid_out(groups, count_n, rows_n, first_n, num_rows):
    """Build the ExpertLayout of groups int32[m a] with `num_rows` rows.

    The rows of group n begin at row first_n[n], in order.
    """
    m, a = groups.shape
    flat_groups = groups.reshape(-1)
    order = jnp.argsort(flat_groups, stable=True)
    # Sorting leaves no gaps between groups: a shift for each group makes room for its padding
    shift_n = first_n - (jnp.cumsum(count_n) - count_n)
    row_of_sorted = jnp.arange(m * a, dtype=jnp.int32) + shift_n[flat_groups[order]].astype(
        jnp.int32
    )
    token_of_row = jnp.full(num_rows, m, jnp.int32).at[row_of_sorted].set(order // a)
    row_of_choice = jnp.zeros(m * a, jnp.int32).at[order].set(row_of_sorted).reshape(m, a)
    return ExpertLayout(token_of_row, row_of_choice, rows_n)


@jax.custom_vjp
def rows_by_expert(x, layout):
    """Copy each token's vector to its experts' rows: x [m d] -> [rows d], zeros on padding rows.

    The gradient gathers too: a token sums the rows of its choices. Autodiff's gradient would
    scatter.
    """
    return _of_rows(x, layout)


def _rows_backward(layout, cotangent):
    return _of_choices(cotangent, layout).sum(1), None


def _of_choices(rows, layout):
    """Gather the rows of each token's choices: [m a d]."""
    # clip: every index is valid. By default, take fills invalid ones with NaN, in an extra pass
    return jnp.take(rows, layout.row_of_choice, axis=0, mode="clip")


def _of_rows(x, layout):
    """Gather the vector of each row's token, zeros on padding rows."""
    if layout.token_of_row.size == layout.row_of_choice.size:
        # No row is padding, and filling would cost a pass over the rows
        return jnp.take(x, layout.token_of_row, axis=0, mode="clip")
    # Padding rows have token m, which is out of range
    return jnp.take(x, layout.token_of_row, axis=0, mode="fill", fill_value=0)


rows_by_expert.defvjp(lambda x, layout: (rows_by_expert(x, layout), layout), _rows_backward)


@jax.custom_vjp
def summed(rows, layout):
    """Sum the rows of each token's choices in float32: rows [r d] -> [m d].

    It is the transpose of rows_by_expert, and so is its gradient.
    """
    return _of_choices(rows, layout).sum(1, dtype=jnp.float32).astype(rows.dtype)


summed.defvjp(
    lambda rows, layout: (summed(rows, layout), layout),
    lambda layout, cotangent: (_of_rows(cotangent, layout), None),
)


def weight_of_rows(weights, layout):
    """Return the weight of each row's choice, 0 on padding rows: float32[m a] -> float32[rows]."""
    return jnp.zeros(layout.token_of_row.size).at[layout.row_of_choice].set(weights)


def combine(rows, weights, layout):
    """Sum each token's rows by weight in float32: rows [r d], weights float32[m a] -> [m d]."""
    chosen_mad = _of_choices(rows, layout)
    return jnp.einsum(
        "mad,ma->md",
        chosen_mad,
        weights,
        precision=precision_of(rows),
        preferred_element_type=jnp.float32,
    ).astype(rows.dtype)


def grouped_matmul(rows, kernel, rows_per_expert, *, implementation: str | None = None):
    """Multiply each row by its expert's matrix: rows [r d], kernel [e d f] -> [r f].

    Gradients are products in the rows' dtype.

    Args:
        rows: [r d], sorted by expert.
        kernel: [e d f].
        rows_per_expert: int32[e]. Results of rows past their sum are undefined: they may be NaN.
        implementation: "ragged" is jax.lax.ragged_dot, a grouped kernel on TPU but dense over the
            experts on a CPU. "megablox" is JAX's Pallas kernel for TPU, and "interpreted" emulates
            it. "pieces" multiplies one expert after another, see ops.cpu.grouped_matmul. None takes
            the choice of ops.platform, and no kernel for narrow matrices or float32.
    """
    product = choose(
        "grouped_matmul",
        implementation,
        suits=lambda: pallas.takes(rows, *kernel.shape[1:]),
        ragged=functools.partial(_grouped, RAGGED),
        megablox=functools.partial(_grouped, MEGABLOX),
        interpreted=functools.partial(_grouped, INTERPRETED),
        pieces=cpu.pieces,
    )
    return product(rows, kernel, rows_per_expert)


def _ragged(rows, kernel, rows_per_expert, transposed=False):
    dimension_numbers = ALONG_COLUMNS if transposed else ALONG_ROWS
    return _ragged_dot(rows, kernel, rows_per_expert, dimension_numbers).astype(rows.dtype)


def _ragged_over_rows(left, right, rows_per_expert, dtype):
    return _ragged_dot(left, right, rows_per_expert, OVER_ROWS).astype(dtype)


def _ragged_dot(left, right, rows_per_expert, dimension_numbers):
    return jax.lax.ragged_dot_general(
        left,
        right,
        rows_per_expert,
        dimension_numbers,
        precision=precision_of(left),
        preferred_element_type=jnp.float32,
    )


class _Form(NamedTuple):
    """The two products of one implementation of grouped_matmul.

    Attributes:
        product: product(rows, kernel, rows_per_expert, transposed).
        over_rows: Implementation of product_over_rows.
    """

    product: Callable
    over_rows: str | None


RAGGED = _Form(_ragged, None)
MEGABLOX = _Form(pallas.product, "megablox")
INTERPRETED = _Form(functools.partial(pallas.product, interpret=True), "interpreted")


# Autodiff would take XLA's form for the gradient of `kernel`, which is dense over the experts on
# TPU too
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped(form, rows, kernel, rows_per_expert):
    return form.product(rows, kernel.astype(rows.dtype), rows_per_expert)


def _grouped_forward(form, *arrays):
    return _grouped(form, *arrays), arrays


def _grouped_backward(form, saved, cotangent):
    rows, kernel, rows_per_expert = saved
    cotangent = cotangent.astype(rows.dtype)
    d_rows = form.product(cotangent, kernel.astype(rows.dtype), rows_per_expert, transposed=True)
    arrays = rows, cotangent, rows_per_expert
    d_kernel = product_over_rows(*arrays, kernel.dtype, implementation=form.over_rows)
    return d_rows, d_kernel, None


_grouped.defvjp(_grouped_forward, _grouped_backward)


def product_over_rows(
    left, right, rows_per_expert, dtype="float32", *, implementation: str | None = None
):
    """Return left^T right over each expert's rows: left [r d], right [r f] -> [e d f].

    Args:
        left: [r d], sorted by expert.
        right: [r f], sorted by expert.
        rows_per_expert: int32[e].
        dtype: The dtype of the result, to which float32 sums are rounded once.
        implementation: "ragged" is jax.lax.ragged_dot_general, which XLA computes densely over the
            experts on TPU too, with the memory for that. "megablox" is JAX's Pallas kernel for TPU,
            and "interpreted" emulates it. "pieces" is ops.cpu.grouped_matmul.sum_by_expert. None
            takes the choice of ops.platform, and no kernel for narrow matrices or float32.
    """
    product = choose(
        "product_over_rows",
        implementation,
        suits=lambda: pallas.takes(left, left.shape[1], right.shape[1]),
        ragged=_ragged_over_rows,
        megablox=pallas.product_over_rows,
        interpreted=functools.partial(pallas.product_over_rows, interpret=True),
        pieces=cpu.sum_by_expert,
    )
    return product(left, right, rows_per_expert, dtype)
