"""Send a token step's few rows to their experts and back, in rounds of as many as a device has room for."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.ops.grouped_matmul import ExpertLayout, combine, whole_tiles
from deepseek_jax.parallel.ragged import ragged_all_to_all

# Room beyond an even share for a device with one expert, the root of n of it for n experts. A further round
# takes as long as room for several shares more, and is needed at once by all devices
UNEVEN = 1.0
# Rows of bfloat16 that fill a register of a TPU
SUBLANES = 16


def round_trip(run, x_md, experts_ma, weights_ma, over, *, held: int):
    """The weighted sum of each token's experts, which devices along the mesh axes `over` have: -> [m d].

    run(rows [r z x], rows_per_expert int32[held]) -> [r z x], of rows sorted by expert, whose d numbers have
    two axes. held: experts of a device. What finds no room in a round is sent in the next.
    """
    shards = jax.lax.axis_size(over) if over else 1
    layout = sorted_choices(experts_ma, shards * held)
    # z: a TPU sends rows whose numbers share words of 32 bits as [r z x], and would copy [r d] into that form
    x_mzx = x_md.reshape(len(x_md), 4 // x_md.dtype.itemsize, -1)
    rows_rzx = jnp.take(x_mzx, layout.token_of_row, axis=0, mode="clip")
    if over:
        returned_rzx = _sent(run, rows_rzx, layout, experts_ma.shape, over, held)
    else:
        returned_rzx = run(rows_rzx, layout.rows_per_expert)
    return combine(returned_rzx.reshape(-1, x_md.shape[1]), weights_ma, layout)


def _sent(run, rows_rzx, layout, choices, over, held):
    """run of the rows of all devices, each by the one that has their expert: what comes back of rows_rzx."""
    (m, a), shards = choices, jax.lax.axis_size(over)
    count_se = jax.lax.all_gather(layout.rows_per_expert, over)
    trip = plan_trip(layout.rows_per_expert, count_se, jax.lax.axis_index(over), held)
    worst = shards * m * min(a, held)
    room = min(_room(m * a, held), worst)

    def one_round(first, returned_rzx):
        there, back, rows_per_expert = trip.window(first, room)
        # Rows that nobody sends are never read
        received_rzx = jax.lax.empty((room, *rows_rzx.shape[1:]), rows_rzx.dtype)
        received_rzx = ragged_all_to_all(rows_rzx, received_rzx, *there, axis_name=over)
        done_rzx = run(received_rzx, rows_per_expert)
        return ragged_all_to_all(done_rzx, returned_rzx, *back, axis_name=over)

    returned_rzx = jax.lax.empty(rows_rzx.shape, rows_rzx.dtype)
    if room == worst:
        return one_round(0, returned_rzx)
    # One round unless more rows than fit arrive somewhere, which all devices along `over` know
    _, returned_rzx = jax.lax.while_loop(
        lambda carried: carried[0] < trip.most,
        lambda carried: (carried[0] + room, one_round(*carried)),
        (jnp.int32(0), returned_rzx),
    )
    return returned_rzx


def _room(share, held):
    """The rows that a device takes in a round, in whole tiles of the product that takes them. share: of rows,
    in balance.
    """
    rows = math.ceil(share * (1 + UNEVEN / math.sqrt(held)))
    return -(-rows // SUBLANES) * SUBLANES if held == 1 else whole_tiles(rows)


def sorted_choices(experts_ma, n_routed_experts: int):
    """The ExpertLayout of few choices int32[m a], one row each. Each is compared with each: of a few dozen
    that takes less time than a sort.
    """
    m, a = experts_ma.shape
    number_ma = jnp.arange(m * a).reshape(m, a)
    # n: tokens, o: their choices. In the order of experts, then of choices
    other_mano, number_mano = experts_ma[..., None, None], number_ma[..., None, None]
    is_before_mano = (experts_ma < other_mano) | (
        (experts_ma == other_mano) & (number_ma < number_mano)
    )
    row_ma = is_before_mano.sum((2, 3), dtype=jnp.int32)
    is_at_rma = row_ma == jnp.arange(m * a)[:, None, None]
    token_of_row = jnp.where(is_at_rma, jnp.arange(m)[:, None], 0).sum((1, 2), dtype=jnp.int32)
    is_of_mae = experts_ma[..., None] == jnp.arange(n_routed_experts)
    return ExpertLayout(token_of_row, row_ma, is_of_mae.sum((0, 1), dtype=jnp.int32))


class Trip(NamedTuple):
    """Where the rows are of this device for each expert [e], and of each device for this one's experts [s h].

    sender: where they begin among the rows of the device that sends them. begin, end: among all rows that
    their receiver gets, which are sorted by expert, then by sender. most: the most rows that a device gets.
    """

    sender_e: jax.Array
    begin_e: jax.Array
    end_e: jax.Array
    sender_sh: jax.Array
    begin_sh: jax.Array
    end_sh: jax.Array
    most: jax.Array

    def window(self, first, room: int):
        """The exchange of the rows that receivers get from row `first` on, at most `room`: the offsets and
        sizes of ragged_all_to_all there and back, and the rows of each expert here int32[h].
        """

        def cut(sender, begin, end):
            inside = jnp.clip(begin, first, first + room)
            size = jnp.clip(end, first, first + room) - inside
            return sender + inside - begin, inside - first, size

        from_e, to_e, size_e = cut(self.sender_e, self.begin_e, self.end_e)
        from_sh, to_sh, size_sh = cut(self.sender_sh, self.begin_sh, self.end_sh)
        sizes = size_sh.reshape(-1)
        there = from_e, size_e, to_e, sizes
        back = to_sh.reshape(-1), sizes, from_sh.reshape(-1), size_e
        return there, back, size_sh.sum(0)


def plan_trip(count_e, count_se, device, held: int):
    """The Trip of a device, int32[]. count_e: int32[e], its rows for each expert; count_se: those of each
    device. held: experts of a device.
    """
    shards, e = count_se.shape
    expert_e, shard_s = jnp.arange(e), jnp.arange(shards)[:, None]
    total_dh = count_se.sum(0).reshape(shards, held)
    # Of the rows that a device gets, those of its earlier experts come first
    first_dh = _sums(total_dh.T, 0).T
    first_e = first_dh.reshape(-1)
    count_sh = jax.lax.dynamic_slice_in_dim(count_se, device * held, held, axis=1)
    to_earlier_s = jnp.where(expert_e < device * held, count_se, 0).sum(1)
    return Trip(
        sender_e=jnp.where(expert_e < expert_e[:, None], count_e, 0).sum(1),
        begin_e=first_e + jnp.where(shard_s < device, count_se, 0).sum(0),
        end_e=first_e + jnp.where(shard_s <= device, count_se, 0).sum(0),
        sender_sh=to_earlier_s[:, None] + _sums(count_sh.T, 0).T,
        begin_sh=first_dh[device] + _sums(count_sh, 0),
        end_sh=first_dh[device] + _sums(count_sh, 1),
        most=total_dh.sum(1).max(),
    )


def _sums(count_nx, own: int):
    """The sums of all earlier rows, and of each row too with own=1: int32[n x] -> int32[n x]."""
    if len(count_nx) == 1:
        return own * count_nx
    number_n = jnp.arange(len(count_nx))
    return jnp.where((number_n < number_n[:, None] + own)[..., None], count_nx, 0).sum(1)
