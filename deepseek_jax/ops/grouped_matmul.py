"""One matrix product per expert over rows sorted by expert; no row is dropped; idle experts cost nothing."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

from deepseek_jax.ops.cpu import grouped_matmul as cpu
from deepseek_jax.ops.platform import choose

ALONG_COLUMNS = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))
OVER_ROWS = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())
# Megablox tiles, of rows and of both operands' columns: in float32 too they fit 16 MiB of vector memory
TILES = (512, 512, 512)
# The largest block_size
MAX_BLOCK = 8


class ExpertLayout(NamedTuple):
    """The row of each (token, choice) among rows sorted by expert, each expert's rows padded to whole blocks.

    token_of_row: int32[rows], m on padding. row_of_choice: int32[m a]. rows_per_expert: int32[e], padded.
    """

    token_of_row: jax.Array
    row_of_choice: jax.Array
    rows_per_expert: jax.Array


def block_size(choices: int, n_routed_experts: int):
    """Each expert's rows are padded to a multiple of this: a power of two, at most an expert's mean rows, so
    that padding at most doubles the rows, and at most MAX_BLOCK.
    """
    share = max(choices // n_routed_experts, 1)
    return min(1 << (share.bit_length() - 1), MAX_BLOCK)


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
    # Padding rows have token m, which is out of range: take fills them with zeros
    return jnp.take(x, layout.token_of_row, axis=0, mode="fill", fill_value=0)


def _rows_backward(layout, cotangent):
    return jnp.take(cotangent, layout.row_of_choice, axis=0).sum(1), None


rows_by_expert.defvjp(lambda x, layout: (rows_by_expert(x, layout), layout), _rows_backward)


@jax.custom_vjp
def combine(rows, weights, layout):
    """Sum each token's expert outputs: rows [r d], weights float32[m a] -> [m d], weighted in float32."""
    chosen_mad = jnp.take(rows, layout.row_of_choice, axis=0)
    return jnp.einsum("mad,ma->md", chosen_mad, weights, preferred_element_type=jnp.float32).astype(
        rows.dtype
    )


def _combine_forward(rows, weights, layout):
    return combine(rows, weights, layout), (rows, weights, layout)


def _combine_backward(saved, cotangent):
    rows, weights, layout = saved
    # Vectors are gathered, as in rows_by_expert; only weights, one number a choice, are scattered
    weight_r = jnp.zeros(len(rows), weights.dtype).at[layout.row_of_choice].set(weights)
    spread = jnp.take(cotangent, layout.token_of_row, axis=0, mode="fill", fill_value=0)
    chosen_mad = jnp.take(rows, layout.row_of_choice, axis=0)
    d_weights = jnp.einsum("mad,md->ma", chosen_mad, cotangent, preferred_element_type=jnp.float32)
    return (spread * weight_r[:, None]).astype(rows.dtype), d_weights.astype(weights.dtype), None


combine.defvjp(_combine_forward, _combine_backward)


def grouped_matmul(rows, kernel, rows_per_expert, *, implementation: str | None = None):
    """Multiply each row by its expert's matrix: rows [r d], kernel [e d f], sorted by expert -> [r f].

    rows_per_expert: int32[e]; results of rows past their sum are finite but undefined.
    implementation: "ragged" is jax.lax.ragged_dot, a grouped kernel on TPU but dense over the experts on a
    CPU; "pieces" multiplies one expert after another, see ops.cpu.grouped_matmul. None takes the choice of
    ops.platform. Gradients are products in the rows' dtype.
    """
    product = choose("grouped_matmul", implementation, ragged=_ragged, pieces=cpu.pieces)
    return product(rows, kernel, rows_per_expert)


# Autodiff would take XLA's form for the kernel's gradient, which is dense over the experts on TPU too
@jax.custom_vjp
def _ragged(rows, kernel, rows_per_expert):
    out = jax.lax.ragged_dot(
        rows, kernel.astype(rows.dtype), rows_per_expert, preferred_element_type=jnp.float32
    )
    return out.astype(rows.dtype)


def _ragged_forward(*arrays):
    return _ragged(*arrays), arrays


def _ragged_backward(saved, cotangent):
    rows, kernel, rows_per_expert = saved
    cotangent = cotangent.astype(rows.dtype)
    d_rows = jax.lax.ragged_dot_general(
        cotangent,
        kernel.astype(rows.dtype),
        rows_per_expert,
        ALONG_COLUMNS,
        preferred_element_type=jnp.float32,
    )
    d_kernel = product_over_rows(rows, cotangent, rows_per_expert)
    return d_rows.astype(rows.dtype), d_kernel.astype(kernel.dtype), None


_ragged.defvjp(_ragged_forward, _ragged_backward)


def product_over_rows(left, right, rows_per_expert, *, implementation: str | None = None):
    """Each expert's left^T right over its own rows: left [r d], right [r f] -> float32[e d f].

    implementation: "ragged" is jax.lax.ragged_dot_general, which XLA computes densely over the experts, with
    the memory for that, on TPU too; "megablox" is JAX's Pallas kernel for TPU (arXiv:2211.15841) and
    "interpreted" its emulation; "pieces" is ops.cpu.grouped_matmul.sum_by_expert. None takes the choice of
    ops.platform.
    """
    product = choose(
        "product_over_rows",
        implementation,
        ragged=_ragged_over_rows,
        megablox=_megablox_over_rows,
        interpreted=functools.partial(_megablox_over_rows, interpret=True),
        pieces=cpu.sum_by_expert,
    )
    return product(left, right, rows_per_expert)


def _ragged_over_rows(left, right, rows_per_expert):
    return jax.lax.ragged_dot_general(
        left, right, rows_per_expert, OVER_ROWS, preferred_element_type=jnp.float32
    )


def _megablox_over_rows(left, right, rows_per_expert, interpret=False):
    tile, *tiles = (
        min(tile, n) for tile, n in zip(TILES, (*left.shape, right.shape[1]), strict=True)
    )
    # The kernel refuses a last tile that is not full. Rows past the experts' own add to no result
    left, right = (jnp.pad(x, ((0, -len(x) % tile), (0, 0))) for x in (left, right))
    return tgmm(left.T, right, rows_per_expert, jnp.float32, (tile, *tiles), interpret=interpret)
