"""Where each device's rows go, so that they arrive sorted by expert, and the way back.

Letters: s, the devices that exchange rows; o, the experts of one device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Exchange(NamedTuple):
    """The last four arguments of ragged_all_to_all: int32[n], one entry per expert of each peer."""

    input_offsets: jax.Array
    send_sizes: jax.Array
    output_offsets: jax.Array
    recv_sizes: jax.Array


class Trip(NamedTuple):
    """A device's plan for sending rows: which rows go where, for any round.

    The fields describe ranges of rows. Fields with [e] are this device's rows for each expert.
    Fields with [s o] are the rows that each sender has for this device's experts.

    Attributes:
        sender_e: int32[e], where a range begins among the rows of the device that sends it.
        begin_e: int32[e], where a range begins among all rows that its receiver gets. These are
            sorted by expert, then by sender; each expert's begin at a multiple of
            plan_trip's block.
        end_e: int32[e], where the same range ends.
        sender_so: int32[s o], like sender_e.
        begin_so: int32[s o], like begin_e.
        end_so: int32[s o], like end_e.
        most: int32[], the most rows that a device gets, without padding.
    """

    sender_e: jax.Array
    begin_e: jax.Array
    end_e: jax.Array
    sender_so: jax.Array
    begin_so: jax.Array
    end_so: jax.Array
    most: jax.Array

    def window(self, first, room: int):
        """Plan one round: receivers get at most `room` rows, from row `first` of all their rows on.

        Returns:
            The Exchange there, the Exchange back, and the rows of each expert here, int32[o],
            without padding.
        """

        def cut(sender, begin, end):
            inside = jnp.clip(begin, first, first + room)
            size = jnp.clip(end, first, first + room) - inside
            # The offset of an empty range could be out of bounds
            offsets = sender + inside - begin, inside - first
            return *(jnp.where(size > 0, offset, 0) for offset in offsets), size

        from_e, to_e, size_e = cut(self.sender_e, self.begin_e, self.end_e)
        from_so, to_so, size_so = cut(self.sender_so, self.begin_so, self.end_so)
        here = size_so.reshape(-1)
        there = Exchange(from_e, size_e, to_e, here)
        back = Exchange(to_so.reshape(-1), here, from_so.reshape(-1), size_e)
        return there, back, size_so.sum(0)


def plan_trip(count_e, count_se, device, block: int = 1):
    """Compute the Trip of a device.

    Args:
        count_e: int32[e], the device's rows for each expert.
        count_se: int32[s e], the same for all devices.
        device: int32[], the device's index.
        block: The receiver's rows of each expert begin at a multiple of it.
    """
    shards, e = count_se.shape
    own_experts = e // shards
    expert_e, shard_s = jnp.arange(e), jnp.arange(shards)[:, None]
    total_so = count_se.sum(0).reshape(shards, own_experts)
    # Rows for a device's earlier experts come first
    first_so = _sums(whole_blocks(total_so, block).T).T
    first_e = first_so.reshape(-1)
    count_so = jax.lax.dynamic_slice_in_dim(count_se, device * own_experts, own_experts, axis=1)
    to_earlier_s = jnp.where(expert_e < device * own_experts, count_se, 0).sum(1)
    return Trip(
        sender_e=jnp.where(expert_e < expert_e[:, None], count_e, 0).sum(1),
        begin_e=first_e + jnp.where(shard_s < device, count_se, 0).sum(0),
        end_e=first_e + jnp.where(shard_s <= device, count_se, 0).sum(0),
        sender_so=to_earlier_s[:, None] + _sums(count_so.T).T,
        begin_so=first_so[device] + _sums(count_so),
        end_so=first_so[device] + _sums(count_so, inclusive=True),
        most=total_so.sum(1).max(),
    )


def whole_blocks(count: jax.Array, block: int) -> jax.Array:
    """Round numbers of rows up to whole blocks."""
    return -(-count // block) * block


def _sums(count_nx, inclusive: bool = False):
    """Sum all earlier rows, and the row itself if inclusive: int32[n x] -> int32[n x]."""
    if len(count_nx) == 1:
        return inclusive * count_nx
    number_n = jnp.arange(len(count_nx))
    return jnp.where((number_n < number_n[:, None] + inclusive)[..., None], count_nx, 0).sum(1)
