"""A form of jax.lax.ragged_all_to_all that also runs on machines without it.

Tests: tests/parallel/test_round_trip.py.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.platform import choose


def words(rows: jax.Array) -> jax.Array:
    """View rows [r d] as [r z x]: z numbers share a word of 32 bits.

    A TPU sends rows of this form, and would copy all of [r d] into it.
    """
    return rows.reshape(len(rows), 4 // rows.dtype.itemsize, -1)


def ragged_all_to_all(
    operand: jax.Array,
    output: jax.Array,
    input_offsets: jax.Array,
    send_sizes: jax.Array,
    output_offsets: jax.Array,
    recv_sizes: jax.Array,
    *,
    axis_name: tuple[str, ...],
) -> jax.Array:
    """Call jax.lax.ragged_all_to_all, or do the same by a gather on a machine that lacks it.

    The form is the choice of ops.platform.
    """
    form = choose("ragged_all_to_all", ragged=jax.lax.ragged_all_to_all, gathered=_gathered)
    offsets_and_sizes = input_offsets, send_sizes, output_offsets, recv_sizes
    return form(operand, output, *offsets_and_sizes, axis_name=axis_name)


def _gathered(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """Gather all rows on every device, and take the rows that are sent to this one."""
    shards, per_peer = jax.lax.axis_size(axis_name), len(recv_sizes) // jax.lax.axis_size(axis_name)
    first_entry = jax.lax.axis_index(axis_name) * per_peer

    def sent_here(numbers):
        gathered = jax.lax.all_gather(numbers, axis_name)
        return jax.lax.dynamic_slice_in_dim(gathered, first_entry, per_peer, axis=1)

    rows = jax.lax.all_gather(operand, axis_name, tiled=True)
    begin_sk, place_sk, size_sk = map(sent_here, (input_offsets, output_offsets, send_sizes))
    nth_rsk = jnp.arange(len(output))[:, None, None] - place_sk
    arrives_rsk = (nth_rsk >= 0) & (nth_rsk < size_sk)
    source_rsk = jnp.arange(shards)[:, None] * len(operand) + begin_sk + nth_rsk
    source_r = jnp.where(arrives_rsk, source_rsk, 0).sum((1, 2))
    received_rows = jnp.take(rows, source_r, axis=0, mode="clip")
    arrives_r = arrives_rsk.any((1, 2)).reshape(-1, *[1] * (output.ndim - 1))
    return jnp.where(arrives_r, received_rows, output)
