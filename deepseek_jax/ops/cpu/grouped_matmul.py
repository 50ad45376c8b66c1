"""Grouped products expert by expert, some rows at a time, for a CPU.

They cost what the rows cost, and copy no matrix.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.cpu.bits import bits
from deepseek_jax.ops.dot import einsum

# Bounds on the rows of a large piece
SMALLEST, LARGEST = 8, 256


# JAX cannot differentiate the loops below in reverse: how often they run depends on data
@jax.custom_vjp
def pieces(rows, kernel, rows_per_expert):
    """Compute ops.grouped_matmul.grouped_matmul; rows past the experts' rows come out as zeros."""
    return product_by_expert("rd,df->rf", rows, kernel, rows_per_expert)


def _pieces_forward(*arrays):
    return pieces(*arrays), arrays


def _pieces_backward(saved, cotangent):
    rows, kernel, rows_per_expert = saved
    cotangent = cotangent.astype(rows.dtype)
    d_rows = product_by_expert("rf,df->rd", cotangent, kernel, rows_per_expert)
    d_kernel = sum_by_expert(rows, cotangent, rows_per_expert, kernel.dtype)
    return d_rows, d_kernel, None


pieces.defvjp(_pieces_forward, _pieces_backward)


def product_by_expert(spec, rows, kernel, rows_per_expert):
    """Multiply each row by its expert's matrix: rows [r x], kernel [e d f] -> [r y], rows' dtype.

    Args:
        spec: An einsum of some rows with one matrix of the kernel.
        rows: [r x], sorted by expert.
        rows_per_expert: int32[e], any split. Rows past their sum come out as zeros, and no product
            is computed for them.
    """
    width = jax.eval_shape(lambda r, w: jnp.einsum(spec, r, w), rows, kernel[0]).shape[-1]

    def visit(out_ry, expert, start, own_p1):
        piece = jax.lax.dynamic_slice_in_dim(bits(rows), start, len(own_p1)).view(rows.dtype)
        matrix = jax.lax.dynamic_index_in_dim(kernel, expert, keepdims=False).astype(rows.dtype)
        product = einsum(spec, piece, matrix).astype(rows.dtype)
        # A piece may reach into the next expert's rows: there the output stays as it is
        old_rows = jax.lax.dynamic_slice_in_dim(out_ry, start, len(own_p1))
        new_rows = jnp.where(own_p1, bits(product), old_rows)
        return jax.lax.dynamic_update_slice_in_dim(out_ry, new_rows, start, 0)

    out_ry = bits(jnp.zeros((len(rows), width), rows.dtype))
    return _over_pieces(visit, out_ry, rows_per_expert, len(rows)).view(rows.dtype)


def sum_by_expert(left, right, rows_per_expert, dtype):
    """Return left^T right over each expert's rows: left [r d], right [r f] -> dtype[e d f]."""
    sums_edf = jnp.zeros((len(rows_per_expert), left.shape[1], right.shape[1]), jnp.float32)

    def visit(sums_edf, expert, start, own_p1):
        left_pd, right_pf = (
            jax.lax.dynamic_slice_in_dim(bits(x), start, len(own_p1)).view(x.dtype)
            for x in (left, right)
        )
        # One masked operand is enough: rows of other experts then add zeros
        product = einsum("pd,pf->df", left_pd, jnp.where(own_p1, right_pf, 0))
        old_sum = jax.lax.dynamic_index_in_dim(sums_edf, expert, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(sums_edf, old_sum + product, expert, 0)

    return _over_pieces(visit, sums_edf, rows_per_expert, len(left)).astype(dtype)


def piece_sizes(rows, n_experts):
    """Return the rows of a large piece and of a small one.

    A large piece is a power of two, about half an expert's share. A small one is a quarter of it.
    """
    share = max(rows // n_experts, 1)
    large = min(max(1 << share.bit_length() >> 2, SMALLEST), LARGEST)
    return min(large, rows), min(large // 4, rows)


def _over_pieces(visit, carry, rows_per_expert, rows):
    """Fold carry = visit(carry, expert, start, own_p1) over pieces of the rows.

    A piece has p rows, from row `start` on. own_p1 is bool[p 1], True for the expert's rows that no
    other piece has. An expert's rows are cut into large pieces while these are at least half full,
    then into small ones, so that the loops end with its rows.
    """
    large_size, small_size = piece_sizes(rows, len(rows_per_expert))
    rows_per_expert = jnp.asarray(rows_per_expert)
    first_e = jnp.cumsum(rows_per_expert) - rows_per_expert
    large_e = (rows_per_expert + large_size // 2) // large_size
    small_e = -(-jnp.maximum(rows_per_expert - large_e * large_size, 0) // small_size)

    def visit_piece(carry, expert, begin, size):
        # The last piece ends with the array. Its rows before `begin` belong to earlier pieces
        start = jnp.minimum(begin, rows - size)
        row_p = start + jnp.arange(size)
        own_p = (row_p >= begin) & (row_p < first_e[expert] + rows_per_expert[expert])
        return visit(carry, expert, start, own_p[:, None])

    def visit_expert(expert, carry):
        first_row = first_e[expert]

        def large_piece(i, carry):
            return visit_piece(carry, expert, first_row + i * large_size, large_size)

        def small_piece(i, carry):
            return visit_piece(
                carry, expert, first_row + large_e[expert] * large_size + i * small_size, small_size
            )

        carry = jax.lax.fori_loop(0, large_e[expert], large_piece, carry)
        return jax.lax.fori_loop(0, small_e[expert], small_piece, carry)

    return jax.lax.fori_loop(0, len(rows_per_expert), visit_expert, carry)
