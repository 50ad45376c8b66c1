"""Send tokens to the devices that have their experts, and back (arXiv:2412.19437, section 3.2)."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from deepseek_jax.ops.grouped_matmul import (
    ExpertLayout,
    block_size,
    capacity_layout,
    expert_layout,
    rows_by_expert,
    summed,
    weight_of_rows,
    whole_tiles,
)
from deepseek_jax.ops.platform import choose, form_of
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.saved_names import SAVED
from deepseek_jax.parallel.gather import gathered, split_over
from deepseek_jax.parallel.ragged import ragged_all_to_all, words
from deepseek_jax.parallel.shard import axis_parts, constrain, current_mesh, partition_spec
from deepseek_jax.parallel.trip import Exchange, plan_trip, whole_blocks

# Name of the scope of a rare branch, which a plan leaves out
RARE = "rarely"
# Tokens that a device exchanges at once with room for the worst case: 1 GB for DeepSeek-V3 over 32 devices
AT_ONCE = 256
TOKENS = ("batch", "seq", None)


class Kernels(NamedTuple):
    """The matrices of all experts.

    Attributes:
        arrays: The matrices; the first axis of each is experts.
        axes: The logical axes of each matrix.
        dtype: The dtype in which a device gathers the columns of its experts. Their gradients are
            rounded to it once, and summed in float32.
    """

    arrays: tuple[jax.Array, ...]
    axes: tuple[tuple[str | None, ...], ...]
    dtype: str = "float32"


def expert_parallel(
    up: Callable,
    down: Callable,
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    kernels: Kernels,
    *,
    block_size: Callable = block_size,
    buffer: float | None = None,
    saves_hidden: bool = False,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Run experts on the mesh of `jax.set_mesh`: each device has some tokens and some experts.

    Tokens travel along the mesh axes of the logical axis "experts", one row for each choice; no row
    is ever dropped. Without a mesh, or where rows or tokens do not split over it (in a rollout),
    `up` and `down` get the rows of all tokens and the compiler places them.

    Args:
        up: A function (kernels.arrays[0], rows [r d], rows_per_expert int32[e], block=) of rows
            that are sorted by expert, as ops.gated_mlp.experts_up. Returns hidden [r z].
        down: A function (kernels.arrays[1], hidden, rows_per_expert, weight float32[r 1], block=)
            of the same rows, as ops.gated_mlp.experts_down. Returns [r d]. It must be linear in the
            split axis "mlp", so that partial results add up.
        x: [b t d].
        experts: int32[b t a].
        weights: float32[b t a].
        kernels: The experts' two matrices.
        block_size: A function (rows, experts of a device) -> the block size of sorted rows, see
            ops.grouped_matmul.
        buffer: The room that a device has to receive rows in a ragged exchange: a multiple, at
            least 1, of the balanced share of m * a rows. None is room for the worst case. If more
            rows arrive on any device, all devices have room for the worst case and exchange at most
            AT_ONCE tokens each at once, so that it fits in memory. The result is the same, but
            takes longer.
        saves_hidden: With a buffer, save what `up` returns for the backward pass, see
            ops.remat.save_for_backward. By default the backward pass computes it again.
        implementation: "padded" is all_to_all, where every block has room for the worst case.
            "ragged" is parallel.ragged, which sends only rows with a token, into a receive buffer.
            None takes the choice of ops.platform.

    Returns:
        The result [b t d]; and float32[], 1 if rows overflowed the buffer, or None if no buffer can
        overflow.
    """
    mesh = current_mesh()
    kernel_specs = tuple(partition_spec(axes) for axes in kernels.axes)
    expert_axes = () if mesh is None else split_over(mesh, kernel_specs[0][0])
    experts_here = _Experts(up, down, block_size)
    exchange = choose(
        "expert_parallel",
        implementation,
        padded=functools.partial(_padded, expert_axes),
        ragged=functools.partial(_ragged, expert_axes, buffer, saves_hidden),
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
        overflowed = None
        if not expert_axes:
            y_md = experts_here.of_tokens(*arrays, matrices)
        else:
            y_md, overflowed = exchange(experts_here, *arrays, matrices)
        # Where the kernels' axis "mlp" is split, each device has a partial sum. Added in float32, the total
        # is rounded only once
        if mesh is not None and partial_axes:
            y_md = jax.lax.psum(y_md.astype(jnp.float32), partial_axes).astype(y_md.dtype)
        return y_md.reshape(x_btd.shape), overflowed

    mlp_entry = () if mesh is None else kernel_specs[0][kernels.axes[0].index("mlp")]
    partial_axes = split_over(mesh, mlp_entry)
    token_spec = None if mesh is None else _token_places(mesh, x.shape, expert_axes)
    form = implementation or form_of("expert_parallel")
    is_bounded = bool(expert_axes) and buffer is not None and form == "ragged"
    if token_spec is None:
        mesh, expert_axes = None, ()
        return local(x, experts, weights, kernels.arrays)
    y, overflowed = jax.shard_map(
        local,
        in_specs=(token_spec, token_spec, token_spec, kernel_specs),
        out_specs=(token_spec, PartitionSpec() if is_bounded else None),
        # Custom gradients do not declare the axes over which they vary
        check_vma=False,
    )(x, experts, weights, kernels.arrays)
    return constrain(y, TOKENS), overflowed


def _token_places(mesh, shape, expert_axes):
    """Return the PartitionSpec of tokens [b t d] in an exchange along `expert_axes`.

    Each device along `expert_axes` has different tokens, as far as rows or tokens split over these
    axes. None if they do not even split over the axes of a batch.
    """
    row_axes, seq_axes, _ = partition_spec(TOKENS)
    row_axes, seq_axes = split_over(mesh, row_axes), split_over(mesh, seq_axes)
    # In a rollout, experts are also split over axes that do not split the batch
    more_axes = tuple(axis for axis in expert_axes if axis not in row_axes + seq_axes)
    for spec in (
        (row_axes + more_axes, seq_axes, None),
        (row_axes, seq_axes + more_axes, None),
        (row_axes, seq_axes, None),
    ):
        if all(
            size % axis_parts(mesh, entry) == 0 for size, entry in zip(shape, spec, strict=True)
        ):
            return PartitionSpec(*(entry or None for entry in spec))
    return None


class _Experts(NamedTuple):
    """A device's experts: the arguments up, down and block_size of expert_parallel."""

    up: Callable
    down: Callable
    block_size: Callable

    def of_tokens(self, x_md, experts_ma, weights_ma, kernels):
        """Return each token's weighted sum over its experts, all of which are here: [m d].

        Rows of the id len(kernels[0]), no expert, are undefined.
        """
        num_experts = len(kernels[0])
        block = self.block_size(experts_ma.size, num_experts)
        layout = expert_layout(experts_ma, num_experts, block)
        rows_rd, weight_r = rows_by_expert(x_md, layout), weight_of_rows(weights_ma, layout)
        hidden_rz = self.up(kernels[0], rows_rd, layout.rows_per_expert, block=block)
        done_rd = self.down(
            kernels[1],
            save_for_backward(hidden_rz),
            layout.rows_per_expert,
            weight_r[:, None],
            block=block,
        )
        return summed(done_rd, layout)


def _padded(expert_axes, experts, x_md, experts_ma, weights_ma, kernels):
    """Run this device's experts on the tokens of all devices along `expert_axes`."""
    shards, local_experts = jax.lax.axis_size(expert_axes), len(kernels[0])
    # The worst case: every token chooses as many experts of one device as it can
    capacity = len(x_md) * min(experts_ma.shape[1], local_experts)
    layout = capacity_layout(experts_ma // local_experts, shards, capacity)
    # Each row's expert, by its number on the receiver; `local_experts` (no expert) in rows without a token
    expert_r = jnp.full(shards * capacity, local_experts, jnp.int32)
    expert_r = expert_r.at[layout.row_of_choice].set(experts_ma % local_experts)

    received_rd = _to_peers(expert_axes, rows_by_expert(x_md, layout))
    received_r1 = _to_peers(expert_axes, expert_r)[:, None]
    weight_r1 = _to_peers(expert_axes, weight_of_rows(weights_ma, layout))[:, None]
    done_rd = experts.of_tokens(received_rd, received_r1, weight_r1, kernels)
    return summed(_to_peers(expert_axes, done_rd), layout), None


def _to_peers(expert_axes, rows):
    """Send row block i of every device to device i along `expert_axes`; its own inverse."""
    return jax.lax.all_to_all(rows, expert_axes, split_axis=0, concat_axis=0, tiled=True)


def _ragged(expert_axes, buffer, saves_hidden, experts, x_md, experts_ma, weights_ma, kernels):
    """Do the work of _padded without padding: send only rows with a token."""
    arrays = x_md, experts_ma, weights_ma, kernels
    roomy = _exchange(expert_axes, experts, experts_ma.shape, len(kernels[0]), None)
    exchange = _exchange(expert_axes, experts, experts_ma.shape, len(kernels[0]), buffer)
    if exchange == roomy:
        return roomy.of_tokens(*arrays), None if buffer is None else jnp.zeros(())
    plan = exchange.planned(experts_ma, len(kernels[0]))
    return _bounded(exchange, saves_hidden, plan, *arrays)


class _Plan(NamedTuple):
    """The order of a device's rows by expert, and their way to the experts and back.

    Attributes:
        layout: The ExpertLayout of the rows of this device's tokens.
        there: The Exchange to the experts.
        back: The Exchange back.
        rows_per_expert: int32[e], the rows of this device's experts, in whole blocks.
        most: int32[], the most rows that a device gets, without padding.
    """

    layout: ExpertLayout
    there: Exchange
    back: Exchange
    rows_per_expert: jax.Array
    most: jax.Array


class _Exchange(NamedTuple):
    """An exchange: send tokens along the axes `over`, run experts, and send the results back.

    Attributes:
        over: Mesh axes.
        experts: The experts of a device.
        rows: The rows that each device has room for.
        room: The same with padding to whole blocks.
        block: The block size in which rows arrive.
    """

    over: tuple[str, ...]
    experts: _Experts
    rows: int
    room: int
    block: int

    def of_tokens(self, x_md, experts_ma, weights_ma, kernels):
        """Return each token's weighted sum over its experts: [m d]."""
        plan = self.planned(experts_ma, len(kernels[0]))
        hidden_rz = self.hidden(plan, x_md, kernels[0])
        return self.returned(plan, save_for_backward(hidden_rz), weights_ma, kernels[1])

    def planned(self, experts_ma, local_experts):
        """Sort a device's rows by expert, and plan where they go."""
        shards = jax.lax.axis_size(self.over)
        # Rows sorted by expert are sorted by device too. In blocks of 1, every row has a token
        layout = expert_layout(experts_ma, shards * local_experts, 1)
        # Gather all counts: a sender must know where its rows begin on a peer, among other senders' rows
        count_se = jax.lax.all_gather(layout.rows_per_expert, self.over)
        device = jax.lax.axis_index(self.over)
        trip = plan_trip(layout.rows_per_expert, count_se, device, self.block)
        there, back, rows_per_expert = trip.window(0, self.room)
        return _Plan(layout, there, back, whole_blocks(rows_per_expert, self.block), trip.most)

    def hidden(self, plan, x_md, kernel):
        """Send tokens to their experts, and run the first product there: [r z]."""
        rows_rzx = self._received(plan, rows_by_expert(words(x_md), plan.layout))
        rows_rd = rows_rzx.reshape(len(rows_rzx), -1)
        return self.experts.up(kernel, rows_rd, plan.rows_per_expert, block=self.block)

    def returned(self, plan, hidden_rz, weights_ma, kernel):
        """Run the second product, send its rows back, and sum them: [m d]."""
        # Rows are weighed where their experts are. So the backward pass needs no expert's output, and no
        # row makes the way back again
        weight_r1 = self._received(plan, weight_of_rows(weights_ma, plan.layout))[:, None]
        done_rd = self.experts.down(
            kernel, hidden_rz, plan.rows_per_expert, weight_r1, block=self.block
        )
        way = plan.back, plan.there
        returned_rzx = _send(self.over, self.room, weights_ma.size, words(done_rd), *way)
        return summed(returned_rzx, plan.layout).reshape(len(weights_ma), -1)

    def _received(self, plan, rows):
        return _send(self.over, len(rows), self.room, rows, plan.there, plan.back)


def _exchange(over, experts, choices, local_experts: int, share: float | None):
    """Make an _Exchange of choices (m, a) on each device, see receive_rows."""
    rows = receive_rows(choices, jax.lax.axis_size(over), local_experts, share)
    block = experts.block_size(rows, local_experts)
    padding = min(local_experts, rows) * (block - 1)
    return _Exchange(over, experts, rows, (rows + padding) // block * block, block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _bounded(exchange, saves_hidden, plan, x_md, experts_ma, weights_ma, kernels):
    """Run an _Exchange, or exchange in blocks if its room does not suffice.

    The backward pass exchanges again. It runs the experts' first product again unless it is saved.

    Returns:
        The result [m d], and float32[], 1 if rows overflowed.
    """
    arrays = plan, x_md, experts_ma, weights_ma, kernels
    return _bounded_forward(exchange, saves_hidden, *arrays)[0]


def _bounded_forward(exchange, saves_hidden, plan, x_md, experts_ma, weights_ma, kernels):
    # All devices of the mesh take the same branch, because both branches have collectives
    overflows = (plan.most > exchange.rows).astype(jnp.float32)
    mesh = current_mesh()
    assert mesh is not None, "rows travel between its devices"
    overflows = jax.lax.pmax(overflows, mesh.axis_names)

    def at_once():
        hidden_rz = exchange.hidden(plan, x_md, kernels[0])
        y_md = exchange.returned(plan, hidden_rz, weights_ma, kernels[1])
        return y_md, hidden_rz if saves_hidden else None

    def in_blocks():
        y_md = _in_blocks(exchange, experts_ma, x_md, weights_ma, kernels)
        if not saves_hidden:
            return y_md, None
        return y_md, jnp.zeros_like(jax.eval_shape(exchange.hidden, plan, x_md, kernels[0]))

    y_md, saved_rz = _either(overflows, in_blocks, at_once)
    if saves_hidden:
        # As save_for_backward does. A remat policy does not see a name within the condition
        saved_rz = checkpoint_name(saved_rz, SAVED)
    return (y_md, overflows), (plan, x_md, experts_ma, weights_ma, kernels, saved_rz, overflows)


def _bounded_backward(exchange, saves_hidden, saved, cotangents):
    # Autodiff of the condition would save what both of its branches need
    plan, x_md, experts_ma, weights_ma, kernels, saved_rz, overflows = saved
    dy_md, _ = cotangents

    def at_once():
        hidden, returned = (
            functools.partial(f, plan) for f in (exchange.hidden, exchange.returned)
        )
        hidden_rz, to_tokens = jax.vjp(hidden, x_md, kernels[0])
        # Where hidden rows are saved nothing reads these, and the compiler drops their product
        hidden_rz = saved_rz if saves_hidden else hidden_rz
        _, to_hidden = jax.vjp(returned, hidden_rz, weights_ma, kernels[1])
        d_hidden, d_weights, d_down = to_hidden(dy_md)
        dx, d_up = to_tokens(d_hidden)
        return dx, d_weights, (d_up, d_down)

    def in_blocks():
        run = functools.partial(_in_blocks, exchange, experts_ma)
        return jax.vjp(run, x_md, weights_ma, kernels)[1](dy_md)

    dx, d_weights, d_kernels = _either(overflows, in_blocks, at_once)
    return None, dx, None, d_weights, d_kernels


_bounded.defvjp(_bounded_forward, _bounded_backward)


def _either(overflows, in_blocks, at_once):
    """Call in_blocks() after an overflow, else at_once()."""

    def rarely():
        with jax.named_scope(RARE):
            return in_blocks()

    return jax.lax.cond(overflows > 0, rarely, at_once)


def _in_blocks(exchange, experts_ma, x_md, weights_ma, kernels):
    """Exchange equal blocks of at most AT_ONCE tokens, one after the other."""
    (m, a), (over, experts) = experts_ma.shape, exchange[:2]
    size = max(size for size in range(1, min(m, AT_ONCE) + 1) if m % size == 0)
    roomy = _exchange(over, experts, (size, a), len(kernels[0]), None)
    # In float32, because the kernels' gradients are summed over blocks. A product rounds the kernels back,
    # which loses nothing
    wide_kernels = tuple(kernel.astype(jnp.float32) for kernel in kernels)
    # The backward pass exchanges again: otherwise the buffers of all blocks would be in memory at once
    exchange_block = jax.checkpoint(lambda block: roomy.of_tokens(*block, wide_kernels))
    blocks = [array.reshape(-1, size, *array.shape[1:]) for array in (x_md, experts_ma, weights_ma)]
    return jax.lax.map(exchange_block, tuple(blocks)).reshape(x_md.shape)


def receive_rows(choices, shards: int, num_local_experts: int, share: float | None):
    """Return the number of rows that a device has room to receive.

    Args:
        choices: (m, a) of each device.
        shards: The number of devices.
        num_local_experts: The number of experts on a device.
        share: The argument `buffer` of expert_parallel.
    """
    m, a = choices
    worst_rows = whole_tiles(shards * m * min(a, num_local_experts))
    return worst_rows if share is None else min(whole_tiles(math.ceil(share * m * a)), worst_rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _send(expert_axes, num_rows, room, rows_rd, plan_there, plan_back):
    """Send each peer along `expert_axes` its part of rows_rd [num_rows d].

    The gradient uses `plan_back`; autodiff would first exchange the offsets with the peers
    again.

    Returns:
        The rows received, [room d].
    """
    received_rd = jnp.zeros((room, *rows_rd.shape[1:]), rows_rd.dtype)
    return ragged_all_to_all(rows_rd, received_rd, *plan_there, axis_name=expert_axes)


def _send_forward(expert_axes, num_rows, room, rows_rd, plan_there, plan_back):
    return _send(expert_axes, num_rows, room, rows_rd, plan_there, plan_back), (
        plan_there,
        plan_back,
    )


def _send_backward(expert_axes, num_rows, room, saved, cotangent):
    plan_there, plan_back = saved
    return _send(expert_axes, room, num_rows, cotangent, plan_back, plan_there), None, None


_send.defvjp(_send_forward, _send_backward)


def _whole_columns(mesh, matrix, axes, dtype):
    """Return a device's share of a matrix, gathered over "embed", with three axes.

    Gate and up become one axis before they are gathered: a TPU copies an array to join two axes,
    and the share is smaller.
    """
    dim = axes.index("embed")
    matrix = matrix.reshape(*matrix.shape[:2], -1)
    return gathered(mesh, matrix, partition_spec(axes)[dim], dim, dtype)
