"""One matrix product per expert over rows sorted by expert; no row is dropped; idle experts cost nothing."""

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
    """The row of each (token, choice) among rows sorted by expert, each expert's rows padded to whole blocks.

    token_of_row: int32[rows], m on padding. row_of_choice: int32[m a]. rows_per_expert: int32[e], padded.
    """

    token_of_row: jax.Array
    row_of_choice: jax.Array
    rows_per_expert: jax.Array


def block_size(choices: int, n_routed_experts: int):
    """Each expert's rows are padded to a multiple of this: a power of two, at most an expert's mean rows, so
    that padding at most doubles the rows, and at most what ops.platform has for the machine.
    """
    share = max(choices // n_routed_experts, 1)
    return min(1 << (share.bit_length() - 1), size_of("expert_block"))


def whole_tiles(rows: int):
    """The number of rows, rounded up to whole tiles of the machine's grouped product."""
    few, many = size_of("row_tiles")
    # Decoding has few rows, which a large tile would nearly double
    tile = few if rows < 8 * many else many
    return -(-rows // tile) * tile


def expert_layout(experts, n_routed_experts: int, block: int):
    """Lay out experts int32[m a] as ExpertLayout. The number of rows depends on shapes alone.

    The id n_routed_experts stands for no expert: its rows come after all others, and their products are
    undefined.
    """
    m, a = experts.shape
    # As many blocks as the worst split over experts needs
    blocks = (m * a + min(n_routed_experts, m * a) * (block - 1)) // block
    # z: the experts, then the id for no expert
    count_z = counts(experts, n_routed_experts + 1)
    rows_e = -(-count_z[:-1] // block) * block
    first_z = jnp.cumsum(jnp.pad(rows_e, (1, 0)))
    return _laid_out(experts, count_z, rows_e, first_z, blocks * block)


def capacity_layout(groups, n_groups: int, capacity: int):
    """Lay out groups int32[m a] as ExpertLayout with `capacity` rows for each group. The caller ensures that
    no group has more.
    """
    rows_n = jnp.full(n_groups, capacity, jnp.int32)
    count_n = counts(groups, n_groups)
    return _laid_out(groups, count_n, rows_n, jnp.arange(n_groups) * capacity, n_groups * capacity)


def counts(groups, n_groups: int):
    """How often each group is chosen: int32[...] below n_groups -> int32[n_groups]."""
    return jnp.zeros(n_groups, jnp.int32).at[groups.reshape(-1)].add(1)


def _laid_out(groups, count_n, rows_n, first_n, rows):
    """ExpertLayout of groups int32[m a]: `rows` rows, those of group n in order from row first_n[n] on."""
    m, a = groups.shape
    flat = groups.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    # Sorting leaves no gaps between groups: a shift for each group makes room for its padding
    shift_n = first_n - (jnp.cumsum(count_n) - count_n)
    row_of_sorted = jnp.arange(m * a, dtype=jnp.int32) + shift_n[flat[order]].astype(jnp.int32)
    token_of_row = jnp.full(rows, m, jnp.int32).at[row_of_sorted].set(order // a)
    row_of_choice = jnp.zeros(m * a, jnp.int32).at[order].set(row_of_sorted).reshape(m, a)
    return ExpertLayout(token_of_row, row_of_choice, rows_n)


@jax.custom_vjp
def rows_by_expert(x, layout):
    """Copy each token's vector to its experts' rows: x [m d] -> [rows d], zeros on padding rows.

    The gradient gathers too (a token sums its choices' rows). Autodiff's gradient would scatter.
    """
    return _of_rows(x, layout)


def _rows_backward(layout, cotangent):
    return _of_choices(cotangent, layout).sum(1), None


def _of_choices(rows, layout):
    """The row of each token's choices: [m a d]."""
    # clip: every index is one of a row. By default take would write NaN over others, in a pass of its own
    return jnp.take(rows, layout.row_of_choice, axis=0, mode="clip")


def _of_rows(x, layout):
    """The vector of each row's token, zeros on padding rows."""
    if layout.token_of_row.size == layout.row_of_choice.size:
        # No row is padding. Filling would cost a pass over the rows
        return jnp.take(x, layout.token_of_row, axis=0, mode="clip")
    # Padding rows have token m, which is out of range
    return jnp.take(x, layout.token_of_row, axis=0, mode="fill", fill_value=0)


rows_by_expert.defvjp(lambda x, layout: (rows_by_expert(x, layout), layout), _rows_backward)


@jax.custom_vjp
def combine(rows, weights, layout):
    """Sum each token's expert outputs: rows [r d], weights float32[m a] -> [m d], weighted in float32."""
    chosen_mad = _of_choices(rows, layout)
    return _float32("mad,ma->md", chosen_mad, weights).astype(rows.dtype)


def _float32(spec, rows, others):
    """einsum at the precision of rows, into float32."""
    return jnp.einsum(
        spec, rows, others, precision=precision_of(rows), preferred_element_type=jnp.float32
    )


def _combine_forward(rows, weights, layout):
    return combine(rows, weights, layout), (rows, weights, layout)


def _combine_backward(saved, cotangent):
    rows, weights, layout = saved
    # Vectors are gathered, as in rows_by_expert; only weights, one number a choice, are scattered
    weight_r = jnp.zeros(len(rows), weights.dtype).at[layout.row_of_choice].set(weights)
    spread = _of_rows(cotangent, layout)
    chosen_mad = _of_choices(rows, layout)
    d_weights = _float32("mad,md->ma", chosen_mad, cotangent)
    # Without the barrier XLA rounds later, and first copies the float32 product to another layout
    d_rows = jax.lax.optimization_barrier((spread * weight_r[:, None]).astype(rows.dtype))
    return d_rows, d_weights.astype(weights.dtype), None


combine.defvjp(_combine_forward, _combine_backward)


def grouped_matmul(rows, kernel, rows_per_expert, *, implementation: str | None = None):
    """Multiply each row by its expert's matrix: rows [r d], kernel [e d f], sorted by expert -> [r f].

    rows_per_expert: int32[e]; results of rows past their sum are undefined: they may be NaN.
    implementation: "ragged" is jax.lax.ragged_dot, a grouped kernel on TPU but dense over the experts on a
    CPU; "megablox" is JAX's Pallas kernel for TPU and "interpreted" its emulation; "pieces" multiplies one
    expert after another, see ops.cpu.grouped_matmul. None takes the choice of ops.platform, and no kernel for
    narrow matrices or float32. Gradients are products in the rows' dtype.
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
    columns = ALONG_COLUMNS if transposed else ALONG_ROWS
    return _ragged_dot(rows, kernel, rows_per_expert, columns).astype(rows.dtype)


def _ragged_over_rows(left, right, rows_per_expert):
    return _ragged_dot(left, right, rows_per_expert, OVER_ROWS)


def _ragged_dot(left, right, rows_per_expert, along):
    return jax.lax.ragged_dot_general(
        left,
        right,
        rows_per_expert,
        along,
        precision=precision_of(left),
        preferred_element_type=jnp.float32,
    )


class _Form(NamedTuple):
    """product(rows, kernel, rows_per_expert, transposed), and the name of the product over rows."""

    product: Callable
    over_rows: str | None


RAGGED = _Form(_ragged, None)
MEGABLOX = _Form(pallas.product, "megablox")
INTERPRETED = _Form(functools.partial(pallas.product, interpret=True), "interpreted")


# Autodiff would take XLA's form for the kernel's gradient, which is dense over the experts on TPU too
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped(form, rows, kernel, rows_per_expert):
    return form.product(rows, kernel.astype(rows.dtype), rows_per_expert)


def _grouped_forward(form, *arrays):
    return _grouped(form, *arrays), arrays


def _grouped_backward(form, saved, cotangent):
    rows, kernel, rows_per_expert = saved
    cotangent = cotangent.astype(rows.dtype)
    d_rows = form.product(cotangent, kernel.astype(rows.dtype), rows_per_expert, transposed=True)
    d_kernel = product_over_rows(rows, cotangent, rows_per_expert, implementation=form.over_rows)
    return d_rows, d_kernel.astype(kernel.dtype), None


_grouped.defvjp(_grouped_forward, _grouped_backward)


def product_over_rows(left, right, rows_per_expert, *, implementation: str | None = None):
    """Each expert's left^T right over its own rows: left [r d], right [r f] -> float32[e d f].

    implementation: "ragged" is jax.lax.ragged_dot_general, which XLA computes densely over the experts, with
    the memory for that, on TPU too; "megablox" is JAX's Pallas kernel for TPU and "interpreted" its
    emulation; "pieces" is ops.cpu.grouped_matmul.sum_by_expert. None takes the choice of ops.platform, and
    no kernel for narrow matrices or float32.
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
    return product(left, right, rows_per_expert)
