"""Send a token step's few rows to their experts and back, in rounds that fit a device's room.

Letter o: the experts of one device.
"""

import math

import jax
import jax.numpy as jnp

from deepseek_jax.ops.grouped_matmul import ExpertLayout, combine, whole_tiles
from deepseek_jax.parallel.ragged import ragged_all_to_all, words
from deepseek_jax.parallel.trip import plan_trip

# Room beyond an even share, as a fraction of it: UNEVEN for a device with one expert, UNEVEN / sqrt(n) for n
# experts. If one device needs another round, all devices take part, and that takes as long as room for
# several more shares
UNEVEN = 1.0
# Rows of bfloat16 that fill a register of a TPU
SUBLANES = 16
# Name of the scope of the loop over rounds. A plan counts one or two turns of the loop
ROUNDS = "rounds"


def round_trip(run, x_md, experts_ma, weights_ma, expert_axes, own_experts: int):
    """Compute the weighted sum of each token's experts, which are split over expert_axes.

    A row that finds no room in a round is sent in the next round.

    Args:
        run: A function (rows [r z x], rows_per_expert int32[o]) -> [r z x] that runs a device's
            experts on rows sorted by expert. A row's d numbers have the two axes z and x.
        x_md: [m d].
        experts_ma: int32[m a].
        weights_ma: float32[m a].
        expert_axes: Mesh axes; may be empty.
        own_experts: The number of experts on a device.

    Returns:
        The sum [m d]; and int32[], the number of rounds, 0 without expert_axes.
    """
    shards = jax.lax.axis_size(expert_axes) if expert_axes else 1
    layout = sorted_choices(experts_ma, shards * own_experts)
    rows_rzx = jnp.take(words(x_md), layout.token_of_row, axis=0, mode="clip")
    if expert_axes:
        most = shards * len(x_md) * min(experts_ma.shape[1], own_experts)
        room = min(_room(experts_ma.size, own_experts), most)
        counts = layout.rows_per_expert
        rows_rzx, rounds = _in_rounds(run, rows_rzx, counts, expert_axes, room, room < most)
    else:
        rows_rzx, rounds = run(rows_rzx, layout.rows_per_expert), jnp.int32(0)
    return combine(rows_rzx.reshape(-1, x_md.shape[1]), weights_ma, layout), rounds


def _in_rounds(run, rows_rzx, count_e, expert_axes, room, may_overflow: bool):
    """Run the rows of all devices, each row on the device that has its expert.

    Args:
        run: See round_trip.
        rows_rzx: This device's rows, sorted by expert.
        count_e: int32[e], this device's rows for each expert.
        expert_axes: Mesh axes.
        room: The rows that a device receives in a round.
        may_overflow: False if one round always suffices.

    Returns:
        The results of rows_rzx, and the number of rounds.
    """
    count_se = jax.lax.all_gather(count_e, expert_axes)
    trip = plan_trip(count_e, count_se, jax.lax.axis_index(expert_axes))

    def one_round(first, returned_rzx):
        there, back, rows_per_expert = trip.window(first, room)
        # Empty, not zeros: nothing reads the rows that nobody sends
        received_rzx = jax.lax.empty((room, *rows_rzx.shape[1:]), rows_rzx.dtype)
        received_rzx = ragged_all_to_all(rows_rzx, received_rzx, *there, axis_name=expert_axes)
        done_rzx = run(received_rzx, rows_per_expert)
        return ragged_all_to_all(done_rzx, returned_rzx, *back, axis_name=expert_axes)

    returned_rzx = jax.lax.empty(rows_rzx.shape, rows_rzx.dtype)
    if not may_overflow:
        return one_round(0, returned_rzx), jnp.int32(1)
    # Every device knows trip.most, the most rows that arrive anywhere, so all take the same number of rounds
    with jax.named_scope(ROUNDS):
        rounds, returned_rzx = jax.lax.while_loop(
            lambda carried: carried[0] * room < trip.most,
            lambda carried: (carried[0] + 1, one_round(carried[0] * room, carried[1])),
            (jnp.int32(0), returned_rzx),
        )
    return returned_rzx, rounds


def _room(share: int, own_experts: int):
    """Return the rows of a round, in whole tiles of the product that takes them.

    Args:
        share: The rows that a device gets from a balanced router.
        own_experts: The number of experts on a device.
    """
    rows = math.ceil(share * (1 + UNEVEN / math.sqrt(own_experts)))
    return -(-rows // SUBLANES) * SUBLANES if own_experts == 1 else whole_tiles(rows)


def sorted_choices(experts_ma, n_routed_experts: int):
    """Lay out few choices int32[m a] as an ExpertLayout, one row for each choice.

    Each choice is compared with each: for a few dozen that takes less time than a sort.
    """
    m, a = experts_ma.shape
    number_ma = jnp.arange(m * a).reshape(m, a)
    # n, o: tokens and choices again. Rows are in the order of experts, then of choices
    other_mano, number_mano = experts_ma[..., None, None], number_ma[..., None, None]
    is_before_mano = (experts_ma < other_mano) | (
        (experts_ma == other_mano) & (number_ma < number_mano)
    )
    row_ma = is_before_mano.sum((2, 3), dtype=jnp.int32)
    is_at_rma = row_ma == jnp.arange(m * a)[:, None, None]
    token_of_row = jnp.where(is_at_rma, jnp.arange(m)[:, None], 0).sum((1, 2), dtype=jnp.int32)
    is_of_mae = experts_ma[..., None] == jnp.arange(n_routed_experts)
    return ExpertLayout(token_of_row, row_ma, is_of_mae.sum((0, 1), dtype=jnp.int32))
