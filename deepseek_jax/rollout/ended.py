"""Copying of completions that have ended, from the devices to the processes that own them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.errors import NotFinite
from deepseek_jax.parallel.shard import current_mesh, partition_spec
from deepseek_jax.rollout.completions import Rollout
from deepseek_jax.rollout.slots import Decoding, Slots, on_rollout_mesh


class EndedTokens(NamedTuple):
    """The tokens of e ended completions, 0 and False after their ends.

    Attributes:
        ids: int32[e t], sampled and read.
        logprobs: float32[e t].
        observed: bool[e t], True on tokens that a conversation read; None for single turns.
    """

    ids: jax.Array
    logprobs: jax.Array
    observed: jax.Array | None


class EndedNumbers(NamedTuple):
    """Numbers of e ended completions, [e] each.

    Attributes:
        sampled: int32, the tokens that were sampled.
        read: int32, the tokens that a conversation read.
        last: int32, the token that was sampled last.
        stopped: bool, True if an end token ended the completion.
        drafted: int32, see slots.Drafting; None without drafts.
        accepted: int32, see slots.Drafting; None without drafts.
        broken: int32, the first token with a log-probability that is not finite; -1 for none.
        broken_logprob: float32, this log-probability.
    """

    sampled: jax.Array
    read: jax.Array
    last: jax.Array
    stopped: jax.Array
    drafted: jax.Array | None
    accepted: jax.Array | None
    broken: jax.Array
    broken_logprob: jax.Array


class EndedSlots(NamedTuple):
    """Completions of e slots that have ended, in numpy.

    Attributes:
        slots: int[e].
        devices: The device of each slot, a list.
        here: bool[e], True for completions with tokens in `tokens`.
        tokens: The EndedTokens of these.
        numbers: The EndedNumbers of all.
    """

    slots: np.ndarray
    devices: list[jax.Device]
    here: np.ndarray
    tokens: EndedTokens
    numbers: EndedNumbers


def fetch(
    decoding: Decoding, state: Slots, slots: np.ndarray, own_rows: bool = False
) -> EndedSlots:
    """Copy ended completions from their slots to numpy.

    Args:
        decoding: The Decoding.
        state: All slots.
        slots: int[e], the slots that have ended.
        own_rows: See RolloutLog.
    """
    drafting, turns = state.drafting, state.turns
    slot_arrays = _Read(
        state.tokens,
        state.logprobs,
        state.length,
        state.last_token,
        state.stopped,
        None if turns is None else turns.observed,
        None if drafting is None else (drafting.drafted, drafting.accepted),
    )
    slot_devices = _devices_of(state.tokens)
    local_slots, places = _places(np.asarray(slots), len(slot_devices), len(state.rounds))
    tokens, numbers = _take(decoding, slot_arrays, local_slots)
    devices = [slot_devices[slot] for slot in slots]
    is_here = np.ones(len(places), bool)
    if own_rows and jax.process_count() > 1:
        is_here = np.array([device.process_index == jax.process_index() for device in devices])
        width = len(local_slots) // len(state.rounds)
        tokens = jax.tree.map(lambda array: _on_this_process(array, places[is_here], width), tokens)
        numbers = jax.tree.map(lambda array: array[places], on_host(numbers))
    else:
        tokens, numbers = jax.tree.map(lambda array: array[places], on_host((tokens, numbers)))
    return EndedSlots(slots, devices, is_here, tokens, numbers)


class _Read(NamedTuple):
    """The arrays of Slots that a completion consists of."""

    tokens: jax.Array
    logprobs: jax.Array
    length: jax.Array
    last_token: jax.Array
    stopped: jax.Array
    observed: jax.Array | None
    drafts: tuple[jax.Array, jax.Array] | None


@functools.partial(jax.jit, static_argnums=0)
@on_rollout_mesh
def _take(decoding, arrays, local_slots):
    """Return the EndedTokens and EndedNumbers of slots: every device takes from its own.

    Args:
        local_slots: int32[e], for each device as many slots, numbered from its first one.
    """
    if current_mesh() is None:
        return _take_here(arrays, local_slots)
    by_slot = partition_spec(("slots",))
    return jax.shard_map(_take_here, in_specs=by_slot, out_specs=by_slot)(arrays, local_slots)


def _take_here(arrays, local_slots):
    arrays = jax.tree.map(lambda array: array[local_slots], arrays)
    # After its length a slot still has the tokens of its previous request
    is_present = jnp.arange(arrays.tokens.shape[1]) < arrays.length[:, None]
    observed = None if arrays.observed is None else arrays.observed & is_present
    read_count = jnp.zeros_like(arrays.length) if observed is None else observed.sum(1)
    is_broken = is_present & ~jnp.isfinite(arrays.logprobs)
    broken = is_broken.argmax(1)
    drafted, accepted = arrays.drafts or (None, None)
    tokens = EndedTokens(
        jnp.where(is_present, arrays.tokens, 0), jnp.where(is_present, arrays.logprobs, 0), observed
    )
    return tokens, EndedNumbers(
        arrays.length - read_count,
        read_count,
        arrays.last_token,
        arrays.stopped,
        drafted,
        accepted,
        jnp.where(is_broken.any(1), broken, -1),
        jnp.take_along_axis(arrays.logprobs, broken[:, None], axis=1)[:, 0],
    )


def _places(slots, num_slots: int, num_devices: int):
    """Return the argument `local_slots` of _take, and the place of each slot in its results.

    Args:
        slots: int[e].
        num_slots: The number of all slots.
        num_devices: The number of devices, which have equal shares of the slots.
    """
    device_index, index_on_device = np.divmod(slots, num_slots // num_devices)
    # The rank of each slot among those of its device
    order = np.argsort(device_index, kind="stable")
    rank = np.empty_like(device_index)
    rank[order] = np.arange(len(device_index)) - np.searchsorted(
        device_index[order], device_index[order]
    )
    # A power of two, so that few sizes are compiled
    width = 1 << int(rank.max()).bit_length()
    local_slots, places = np.zeros(num_devices * width, np.int32), device_index * width + rank
    local_slots[places] = index_on_device
    return local_slots, places


def _devices_of(array):
    """Return the device that has each row of a jax array, which no two devices share: a list."""
    devices = [None] * len(array)
    for device, (row_slice, *_) in array.sharding.devices_indices_map(array.shape).items():
        for row in range(len(array))[row_slice]:
            devices[row] = device
    return devices


def _on_this_process(array, places, width: int):
    """Return rows of an array that this process has, without asking another process.

    Args:
        array: A jax array with `width` rows on each device.
        places: int[k], the rows.
    """
    shards_by_index = {
        (shard.index[0].start or 0) // width: np.asarray(shard.data)
        for shard in array.addressable_shards
    }
    rows = [shards_by_index[place // width][place % width] for place in places.tolist()]
    return np.stack(rows) if rows else np.zeros((0, *array.shape[1:]), array.dtype)


def copy_completions(rollout: Rollout, rows: np.ndarray, ended: EndedSlots):
    """Copy ended completions into their rows of a rollout, in place.

    Args:
        rollout: The Rollout that gets them.
        rows: int[e], the row of each of them.
        ended: The completions.

    Raises:
        NotFinite: A log-probability is not finite, so the weights or a device are broken. The
            message names the device of the completion's slot.
    """
    numbers, tokens, own_rows = ended.numbers, ended.tokens, rows[ended.here]
    lengths = (numbers.sampled + numbers.read)[ended.here, None]
    mask = np.arange(tokens.ids.shape[1]) < lengths
    rollout.completion_ids[own_rows] = tokens.ids
    rollout.sampler_logprobs[own_rows] = tokens.logprobs
    if tokens.observed is not None:
        # Slots that read have a rollout of conversations
        assert rollout.observed_mask is not None
        rollout.observed_mask[own_rows] = tokens.observed
        mask &= ~tokens.observed
    rollout.completion_mask[own_rows] = mask
    rollout.truncated[rows] = ~numbers.stopped
    if numbers.drafted is not None:
        # empty_rollout has them
        assert rollout.drafted is not None and rollout.accepted is not None
        rollout.drafted[rows], rollout.accepted[rows] = numbers.drafted, numbers.accepted
    if rollout.owned is not None:
        rollout.owned.owners[rows] = [device.process_index for device in ended.devices]
        rollout.owned.lengths[rows], rollout.owned.read_lengths[rows] = (
            numbers.sampled,
            numbers.read,
        )
        rollout.owned.last_ids[rows] = numbers.last
    for i in np.flatnonzero(numbers.broken >= 0)[:1]:
        raise NotFinite(
            f"token {numbers.broken[i]} of completion {rows[i]} has the log-probability "
            f"{numbers.broken_logprob[i]}, sampled in slot {ended.slots[i]} on {ended.devices[i]}: the "
            "parameters are not finite, or the device is faulty"
        )


def padded(numbers: np.ndarray) -> np.ndarray:
    """Repeat the last number of int[e] up to a power of two, so that few sizes are compiled."""
    width = 1 << (len(numbers) - 1).bit_length()
    return np.append(numbers, np.full(width - len(numbers), numbers[-1]))


def on_host(tree):
    """Convert a tree of jax arrays to numpy, even if other processes have parts of the arrays."""
    split_arrays = [
        array
        for array in jax.tree.leaves(tree)
        if not (array.is_fully_addressable or array.is_fully_replicated)
    ]
    if split_arrays:
        # numpy can read only the parts on this process: replicate such arrays first, all in one
        # program
        tree = _replicating(split_arrays[0].sharding.mesh)(tree)
    return jax.device_get(tree)


@functools.cache
def _replicating(mesh):
    """Return the jitted function that copies a tree to every device of a mesh.

    It is one function for all calls, because jit compiles each new function anew.
    """
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
