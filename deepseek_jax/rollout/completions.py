"""Rollout, the completions of a rollout, and RolloutLog, which receives them as they end."""

import functools
import types
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from typing_extensions import override

from deepseek_jax.data.texts import LazyTexts
from deepseek_jax.errors import NotFinite
from deepseek_jax.training.run import leave_if_asked


class Rollout(NamedTuple):
    """Completions of prompts, as numpy arrays with n adjacent rows for each prompt.

    Attributes:
        completion_ids: int32[b t], 0 after the end.
        completion_mask: bool[b t], True on sampled tokens, including the end token.
        sampler_logprobs: float32[b t], in nats; 0 on tokens that were not sampled.
        truncated: bool[b], True for a completion without an end token, and for a conversation that
            a limit ended.
        drafted: int32[b], the number of tokens that speculative decoding drafted.
        accepted: int32[b], the number of drafted tokens that were accepted.
        observed_mask: bool[b t], True on tokens of a conversation that the model read. None if
            completions are single turns.
    """

    completion_ids: np.ndarray
    completion_mask: np.ndarray
    sampler_logprobs: np.ndarray
    truncated: np.ndarray
    drafted: np.ndarray | None = None
    accepted: np.ndarray | None = None
    observed_mask: np.ndarray | None = None

    def tokens(self):
        """Return each completion's ids, as LazyTexts of lists of int.

        They include what a conversation read. Each list is computed when it is read.
        """
        return LazyTexts(self.ids_of, range(len(self.completion_ids)))

    def ids_of(self, row: int):
        """Return the ids of one completion, including what it read, as a list of int."""
        return self.completion_ids[row][self.present(row)].tolist()

    def present(self, rows):
        """Return where the completions of these rows have tokens, sampled or read: bool[... t]."""
        mask = self.completion_mask[rows]
        return mask if self.observed_mask is None else mask | self.observed_mask[rows]

    @property
    def acceptance_rate(self):
        """The share of drafted tokens that were accepted; NaN if no token was drafted."""
        return _ratio(self.accepted.sum(), self.drafted.sum())

    @property
    def tokens_per_step(self):
        """The tokens that a completion gains in one step of the model; NaN if no token was drafted.

        A step drafts one token, so the number of drafted tokens is the number of steps. The first
        token does not count: it is sampled from the prompt's logits.
        """
        return _ratio((self.completion_mask.sum(1) - 1).sum(), self.drafted.sum())


def _ratio(part, whole):
    return float(part / whole) if whole else float("nan")


class RolloutLog:
    """Base class of a rollout's logs, which store completions so that a later call can reuse them.

    This class stores nothing and has no completions of earlier calls.

    Attributes:
        done: {row: {"ids", "logprobs", "finished", ...}}, the completions that ended in earlier
            calls. They are not sampled again.
        conversations: A conversations.Conversations, which answers the turns; None for single
            turns.
        weight_sync_seconds: The rollout sets it: the time to bring the parameters into the form for
            decoding.
        exchanges: The rollout sets it: how often a layer's tokens were sent to their experts by
            parallel.round_trip; 0 if they go in another way.
        exchange_rounds: The rollout sets it: the number of rounds (parallel.round_trip) of all
            these exchanges, the mean over devices; 0 if tokens go in another way.
        keeps_routing: True if the rollout keeps the experts of its tokens.
        keeps_candidates: True if the rollout keeps, for each token, the tokens that top-p and top-k
            left to draw it from.
        kept: The rollout sets it if it keeps anything: a kept.Kept.
    """

    done = types.MappingProxyType({})
    conversations = None
    weight_sync_seconds, exchanges, exchange_rounds = 0.0, 0, 0.0
    keeps_routing = keeps_candidates = False
    kept = None

    def turn_length(self):
        """Return the most tokens of a conversation's turn.

        It is None if only the length of the completion limits a turn.
        """
        return None if self.conversations is None else self.conversations.use.limits.turn_length

    def add(self, rows, rollout):
        """Receive the rows that have just ended.

        Args:
            rows: int[e], their numbers.
            rollout: The Rollout as it is now; rows that have not ended are empty.
        """


class MeasuredLog(RolloutLog):
    """Log of a measurement: when completions end, it leaves the run if that was asked to stop."""

    @override
    def add(self, rows, rollout):
        leave_if_asked("the measurement")


def empty_rollout(rows: int, length: int, converses: bool = False):
    """Create a Rollout without any sampled token.

    Args:
        rows: The number of completions.
        length: The most tokens of a completion.
        converses: True if completions are conversations.
    """
    shape = rows, length
    return Rollout(
        completion_ids=np.zeros(shape, np.int32),
        completion_mask=np.zeros(shape, bool),
        sampler_logprobs=np.zeros(shape, np.float32),
        truncated=np.zeros(rows, bool),
        drafted=np.zeros(rows, np.int32),
        accepted=np.zeros(rows, np.int32),
        observed_mask=np.zeros(shape, bool) if converses else None,
    )


def fill(rollout: Rollout, log: RolloutLog):
    """Copy a log's completions of earlier calls into their rows of a rollout, in place.

    These rows must be empty.
    """
    for row, line in log.done.items():
        ids = line["ids"]
        rollout.completion_ids[row, : len(ids)] = ids
        rollout.completion_mask[row, : len(ids)] = True
        # JSON's numbers are float64, which represents every float32 exactly
        rollout.sampler_logprobs[row, : len(ids)] = np.float32(line["logprobs"])
        rollout.truncated[row] = not line["finished"]
        if rollout.observed_mask is not None:
            rollout.observed_mask[row, : len(ids)] = line["observed"]
            rollout.completion_mask[row] &= ~rollout.observed_mask[row]


def copy_completions(rollout: Rollout, rows, state, slots):
    """Copy completions from slots into their rows of a rollout, in place.

    Args:
        rollout: The Rollout that gets them.
        rows: int[e], the rows.
        state: A slots.Slots.
        slots: int[e], the slot of each row.
    """
    state = of_slots(state, slots)
    # After its length a slot still has the tokens of its previous request
    own = np.arange(state.tokens.shape[1]) < state.length[:, None]
    rollout.completion_ids[rows] = np.where(own, state.tokens, 0)
    rollout.sampler_logprobs[rows] = np.where(own, state.logprobs, 0)
    if state.turns is not None:
        rollout.observed_mask[rows] = own & state.turns.observed
        own &= ~state.turns.observed
    rollout.completion_mask[rows] = own
    rollout.truncated[rows] = ~state.stopped
    if state.drafting is not None:
        rollout.drafted[rows] = state.drafting.drafted
        rollout.accepted[rows] = state.drafting.accepted


def of_slots(state, slots):
    """Copy the fields that a Rollout needs of some slots to numpy: only these leave the devices.

    Args:
        state: A slots.Slots.
        slots: int[e], the numbers of the slots.

    Returns:
        A slots.Slots of these slots, in which all other fields are None.
    """
    drafting, turns = state.drafting, state.turns
    if turns is not None:
        turns = turns._replace(limit=None, longest=None)
    if drafting is not None:
        drafting = drafting._replace(hidden=None, next_tokens=None, fresh=None)
    unread = "caches step keys prompt_length last_token ended experts candidates".split()
    read = state._replace(**dict.fromkeys(unread), drafting=drafting, turns=turns)
    taken = _take(read, padded(slots))
    return jax.tree.map(lambda array: array[: len(slots)], on_host(taken))


def padded(numbers):
    """Repeat the last number of int[e] up to a power of two, so that few sizes are compiled."""
    width = 1 << (len(numbers) - 1).bit_length()
    return np.append(numbers, np.full(width - len(numbers), numbers[-1]))


@jax.jit
def _take(tree, rows):
    return jax.tree.map(lambda array: array[rows], tree)


def check_finite(rollout: Rollout, rows, state, slots):
    """Check that the completions of a call of copy_completions have finite log-probabilities.

    Args:
        rollout: The Rollout that got them.
        rows: int[e], the rows.
        state: A slots.Slots.
        slots: int[e], the slot of each row.

    Raises:
        NotFinite: A log-probability is not finite, so the weights or a device are broken. The
            message names the devices of the completion's slot.
    """
    for row, slot in zip(rows, slots, strict=True):
        (broken,) = np.nonzero(~np.isfinite(rollout.sampler_logprobs[row]))
        if len(broken):
            where = state.logprobs.sharding.devices_indices_map(state.logprobs.shape)
            devices = [
                device
                for device, (part, _) in where.items()
                if slot in range(len(state.ended))[part]
            ]
            raise NotFinite(
                f"token {broken[0]} of completion {row} has the log-probability "
                f"{rollout.sampler_logprobs[row, broken[0]]}, sampled in slot {slot} on "
                f"{', '.join(map(str, devices))}: the parameters are not finite, or the device is faulty"
            )


def on_host(tree):
    """Convert a tree of jax arrays to numpy, even if other processes have parts of the arrays."""
    apart = [
        array
        for array in jax.tree.leaves(tree)
        if not (array.is_fully_addressable or array.is_fully_replicated)
    ]
    if apart:
        # numpy can read only the parts on this process: replicate such arrays first, all in one
        # program
        tree = _replicating(apart[0].sharding.mesh)(tree)
    return jax.tree.map(np.asarray, tree)


@functools.cache
def _replicating(mesh):
    """Return the jitted function that copies a tree to every device of a mesh.

    It is one function for all calls, because jit compiles each new function anew.
    """
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
