"""Send only rows with a token to the devices that have their experts, and back.

There is room for a bounded number of rows. If more arrive, devices exchange them in blocks.

Tests: tests/parallel/test_dispatch.py.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from deepseek_jax.ops.grouped_matmul import (
    ExpertLayout,
    block_size,
    expert_layout,
    rows_by_expert,
    summed,
    weight_of_rows,
    whole_tiles,
)
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.saved_names import SAVED
from deepseek_jax.parallel.ragged import ragged_all_to_all, words
from deepseek_jax.parallel.shard import current_mesh
from deepseek_jax.parallel.trip import Exchange, plan_trip, whole_blocks

# Name of the scope of a rare branch, which a plan leaves out
RARE = "rarely"
# Tokens that a device exchanges at once with room for the worst case: 1 GB for DeepSeek-V3 over 32 devices
AT_ONCE = 256


class ExpertProducts(NamedTuple):
    """The two products of a device's experts, on rows that are sorted by expert.

    Attributes:
        up: A function (first matrices, rows [r d], rows_per_expert int32[e], block=), as
            ops.gated_mlp.experts_up. Returns hidden [r z].
        down: A function (second matrices, hidden, rows_per_expert, weight float32[r 1], block=) of
            the same rows, as ops.gated_mlp.experts_down. Returns [r d]. It must be linear in the
            split axis "mlp", so that partial results add up.
        block_size: A function (rows, experts of a device) -> the block size of sorted rows, see
            ops.grouped_matmul.
    """

    up: Callable
    down: Callable
    block_size: Callable = block_size

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


def run_ragged(expert_axes, buffer, saves_hidden, experts, x_md, experts_ma, weights_ma, kernels):
    """Run experts on the devices along `expert_axes`: send only rows with a token.

    The arguments `buffer` and `saves_hidden`, and what it returns, are those of
    dispatch.expert_parallel.
    """
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
    experts: ExpertProducts
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
