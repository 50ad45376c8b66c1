"""Send tokens to the devices that hold their experts, and back (arXiv:2412.19437, section 3.2)."""

import contextlib
import contextvars
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from deepseek_jax.ops.grouped_matmul import (
    capacity_layout,
    combine,
    expert_layout,
    rows_by_expert,
    whole_tiles,
)
from deepseek_jax.ops.platform import choose
from deepseek_jax.parallel.gather import gathered, split_over
from deepseek_jax.parallel.shard import axis_parts, current_mesh, partition_spec

# The scope of a branch that a plan leaves out
RARE = "rarely"
# Tokens of a device in an exchange with room for the worst case: of DeepSeek-V3 over 32 devices it takes 1 GB
AT_ONCE = 256
# The factor of `larger_buffers`
_LARGER = contextvars.ContextVar("larger", default=1.0)


@contextlib.contextmanager
def larger_buffers(factor: float):
    """Trace expert_parallel with buffers that are larger by this factor."""
    token = _LARGER.set(factor)
    try:
        yield
    finally:
        _LARGER.reset(token)


class Kernels(NamedTuple):
    """The matrices of all experts. arrays: a tuple, whose first axis is that of experts. axes: the logical
    names of each. dtype: that in which a device gathers the columns of its experts; their gradients are
    rounded to it once, and summed in float32.
    """

    arrays: tuple
    axes: tuple
    dtype: str = "float32"


def expert_parallel(
    run_experts,
    x,
    experts,
    weights,
    kernels: Kernels,
    *,
    buffer: float | None = None,
    implementation: str | None = None,
):
    """Call run_experts on the mesh of `jax.set_mesh`: each device has its own tokens and its own experts.

    run_experts(x [m d], experts int32[m a], weights float32[m a], kernels.arrays) -> [m d]: a pure function
    of tokens and matrices; linear in the matrices' split "mlp" axis, so that partial results add up.
    x: [b t d]; experts: int32[b t a]; weights: float32[b t a]. Tokens travel along the mesh axis "expert",
    one row for each choice; no row is ever dropped.
    implementation: "padded" is all_to_all with room for the worst case in every block sent; "ragged" is
    jax.lax.ragged_all_to_all, which sends only rows with a token, into a receive buffer. None takes the
    choice of ops.platform: a CPU does not implement "ragged".
    buffer: the room that a device has to receive rows in a ragged exchange: a multiple, at least 1, of the
    balanced share of m * a rows; None is room for the worst case. Where more arrive on any device, all have
    room for the worst case and exchange at most AT_ONCE tokens each at once, so that it fits in memory: the
    result is the same, and later.
    Without a mesh, or where rows or tokens do not split over it (in a rollout), run_experts gets the whole
    arrays and the compiler places it. Returns [b t d], and float32[]: 1 where rows overflowed a buffer.
    """
    mesh = current_mesh()
    exchanged = choose(
        "expert_parallel",
        implementation,
        padded=_padded,
        ragged=functools.partial(_ragged, buffer=buffer),
    )

    def local(x_btd, experts_bta, weights_bta, matrices):
        a = experts_bta.shape[-1]
        if mesh is not None:
            matrices = tuple(
                _whole_columns(mesh, matrix, axes, kernels.dtype)
                for matrix, axes in zip(matrices, kernels.axes, strict=True)
            )
        arrays = (
            x_btd.reshape(-1, x_btd.shape[-1]),
            experts_bta.reshape(-1, a),
            weights_bta.reshape(-1, a),
        )
        overflowed = jnp.zeros(())
        if mesh is None or mesh.shape["expert"] == 1:
            y_md = run_experts(*arrays, matrices)
        else:
            y_md, overflowed = exchanged(run_experts, *arrays, matrices)
        # Where the kernels' "mlp" axis is split, each device has a partial sum. Added in float32, their sum
        # is rounded once
        if mesh is not None and partial_over:
            y_md = jax.lax.psum(y_md.astype(jnp.float32), partial_over).astype(y_md.dtype)
        return y_md.reshape(x_btd.shape), overflowed

    partial_over = () if mesh is None else split_over(mesh, partition_spec(("mlp",))[0])
    tokens = partition_spec(("batch", "seq", None))
    if mesh is None or not _splits(mesh, x.shape, tokens):
        mesh = None
        return local(x, experts, weights, kernels.arrays)
    places = tuple(partition_spec(axes) for axes in kernels.axes)
    return jax.shard_map(
        local,
        in_specs=(tokens, tokens, tokens, places),
        out_specs=(tokens, PartitionSpec()),
        # Custom gradients do not declare the axes over which they vary
        check_vma=False,
    )(x, experts, weights, kernels.arrays)


def _in_blocks(exchange, arrays):
    """exchange of tokens [m ...], in equal blocks of at most AT_ONCE, one after the other: -> [m d]."""
    m = len(arrays[0])
    block = max(size for size in range(1, min(m, AT_ONCE) + 1) if m % size == 0)
    # The backward pass exchanges again: it would hold the buffers of all blocks
    exchange = jax.checkpoint(exchange)
    if block == m:
        return exchange(arrays)
    blocks = [array.reshape(-1, block, *array.shape[1:]) for array in arrays]
    y = jax.lax.map(exchange, tuple(blocks))
    return y.reshape(m, *y.shape[2:])


def _padded(run_experts, x_md, experts_ma, weights_ma, kernels):
    """run_experts on this device's experts, for the tokens of all devices along the axis "expert"."""
    shards, held = jax.lax.axis_size("expert"), len(kernels[0])
    # The worst case: every token chooses as many experts of one device as it can
    capacity = len(x_md) * min(experts_ma.shape[1], held)
    layout = capacity_layout(experts_ma // held, shards, capacity)
    # The expert of each row, as its receiver numbers them; `held` (no expert) where no token fills the row
    expert_r = jnp.full(shards * capacity, held, jnp.int32)
    expert_r = expert_r.at[layout.row_of_choice].set(experts_ma % held)

    received_rd = _to_peers(rows_by_expert(x_md, layout))
    received_r1 = _to_peers(expert_r)[:, None]
    # Weights of 1 here: the sender weighs what comes back, so weights do not travel
    done_rd = run_experts(received_rd, received_r1, jnp.ones(received_r1.shape), kernels)
    return combine(_to_peers(done_rd), weights_ma, layout), jnp.zeros(())


def _to_peers(rows):
    """Send row block i of every device to device i along the axis "expert"; its own inverse."""
    return jax.lax.all_to_all(rows, "expert", split_axis=0, concat_axis=0, tiled=True)


def _ragged(run_experts, x_md, experts_ma, weights_ma, kernels, buffer):
    """_padded without padding rows: only rows with a token are sent."""
    shards, held = jax.lax.axis_size("expert"), len(kernels[0])
    tokens, exchange = (x_md, experts_ma, weights_ma), functools.partial(_exchange, run_experts)
    share = None if buffer is None else buffer * _LARGER.get()
    rows = receive_rows(experts_ma.shape, shards, held, share)
    layout, count_sse = _counted(experts_ma, shards, held)
    if rows == receive_rows(experts_ma.shape, shards, held, None):
        return exchange(kernels, tokens, layout, count_sse, rows), jnp.zeros(())
    overflows = (count_sse.sum(-1).sum(0) > rows).any().astype(jnp.float32)
    # All devices of the mesh take one branch, because each has collectives
    overflows = jax.lax.pmax(overflows, current_mesh().axis_names)

    def again(tokens):
        _, experts_ma, _ = tokens
        rows = receive_rows(experts_ma.shape, shards, held, None)
        return exchange(kernels, tokens, *_counted(experts_ma, shards, held), rows)

    def rarely():
        with jax.named_scope(RARE):
            return _in_blocks(again, tokens)

    def usually():
        return exchange(kernels, tokens, layout, count_sse, rows)

    return jax.lax.cond(overflows > 0, rarely, usually), overflows


def _counted(experts_ma, shards, held):
    """A device's rows sorted by expert, and how many each device has for each expert, int32[s s e]."""
    # Sorted by expert they are sorted by device too. In blocks of 1, every row has a token
    layout = expert_layout(experts_ma, shards * held, 1)
    # Of all devices: a sender must know where its rows begin on a peer, after those of others
    return layout, jax.lax.all_gather(layout.rows_per_expert.reshape(shards, held), "expert")


def _exchange(run_experts, kernels, tokens, layout, count_sse, rows):
    """Send tokens, run experts and send back, with room for `rows` rows a device; zeros where more arrive."""
    (x_md, experts_ma, weights_ma), held = tokens, len(kernels[0])
    device = jax.lax.axis_index("expert")
    there, back, fits = exchange_plan(count_sse.sum(-1), device, rows)

    # Each peer's rows arrive sorted by expert; `held` (no expert) marks the rows after the last of them
    count_se = jnp.where(fits, count_sse[:, device], 0).reshape(-1)
    expert_r = jnp.repeat(
        jnp.append(jnp.tile(jnp.arange(held, dtype=jnp.int32), len(count_sse)), held),
        jnp.append(count_se, rows - count_se.sum()),
        total_repeat_length=rows,
    )
    received_rd = _send(experts_ma.size, rows, rows_by_expert(x_md, layout), there, back)
    done_rd = run_experts(received_rd, expert_r[:, None], jnp.ones((rows, 1)), kernels)
    return combine(_send(rows, experts_ma.size, done_rd, back, there), weights_ma, layout)


def receive_rows(choices, shards: int, held: int, share: float | None):
    """How many rows a device has room for: int. choices: (m, a) of each of `shards` devices.

    held: the number of experts on a device. share: see expert_parallel.
    """
    m, a = choices
    worst = whole_tiles(shards * m * min(a, held))
    return worst if share is None else min(whole_tiles(math.ceil(share * m * a)), worst)


class Sending(NamedTuple):
    """The sizes and offsets of jax.lax.ragged_all_to_all, int32[shards] each, one entry for each peer.

    input_offsets: where the rows for the peer begin here. send_sizes: how many they are. output_offsets:
    where they begin on the peer. recv_sizes: how many rows the peer sends.
    """

    input_offsets: jax.Array
    send_sizes: jax.Array
    output_offsets: jax.Array
    recv_sizes: jax.Array


def exchange_plan(count, device, room):
    """Plan the exchange of rows: -> (Sending there, Sending back, bool[] whether every device has room).

    count: int32[shards shards], rows that each device (first axis) has for each peer, sorted by peer. device:
    the index of this one. room: rows that each can receive. Received rows are ordered by sender. If one
    device lacks room, nobody sends anything.
    """
    fits = (count.sum(0) <= room).all()
    count = jnp.where(fits, count, 0)
    # Where the rows for each peer begin among a sender's rows, and those of each sender in a peer's buffer
    start = jnp.cumsum(count, axis=1) - count
    place = jnp.cumsum(count, axis=0) - count
    sent, received = count[device], count[:, device]
    there = Sending(start[device], sent, place[device], received)
    back = Sending(place[:, device], received, start[:, device], sent)
    return there, back, fits


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _send(rows, room, rows_rd, there, back):
    """Send each peer its part of rows_rd [rows d]: -> the rows received, [room d], zeros after them.

    The gradient uses the plan `back`; autodiff would first exchange the offsets with the peers again.
    """
    received_rd = jnp.zeros((room, *rows_rd.shape[1:]), rows_rd.dtype)
    return jax.lax.ragged_all_to_all(rows_rd, received_rd, *there, axis_name="expert")


def _send_forward(rows, room, rows_rd, there, back):
    return _send(rows, room, rows_rd, there, back), (there, back)


def _send_backward(rows, room, saved, cotangent):
    there, back = saved
    return _send(room, rows, cotangent, back, there), None, None


_send.defvjp(_send_forward, _send_backward)


def _splits(mesh, shape, spec):
    pairs = zip(shape, spec, strict=True)
    return all(size % axis_parts(mesh, entry) == 0 for size, entry in pairs)


def _whole_columns(mesh, matrix, axes, dtype):
    """A device's share of a matrix, gathered over "embed"."""
    dim = axes.index("embed")
    return gathered(mesh, matrix, partition_spec(axes)[dim], dim, dtype)
