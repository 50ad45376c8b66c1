"""The result of a rollout: completions and the log-probabilities that they were sampled with."""

import functools
import types
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.data.texts import LazyTexts
from deepseek_jax.errors import NotFinite
from deepseek_jax.training.run import leave_if_asked


class Rollout(NamedTuple):
    """Completions, n adjacent rows a prompt, as numpy arrays.

    completion_ids: int32[b t], 0 past the end. completion_mask: bool[b t], True on sampled tokens, the end
    token too. sampler_logprobs: float32[b t], nats, 0 elsewhere. truncated: bool[b], True without an end
    token, and for a conversation that a limit ended. drafted, accepted: int32[b], the tokens that speculative
    decoding drafted, and accepted. observed_mask: bool[b t], True on tokens of a conversation that the model
    read; None where completions are single turns.
    """

    completion_ids: np.ndarray
    completion_mask: np.ndarray
    sampler_logprobs: np.ndarray
    truncated: np.ndarray
    drafted: np.ndarray | None = None
    accepted: np.ndarray | None = None
    observed_mask: np.ndarray | None = None

    def tokens(self):
        """The ids of each completion, lists of int, each computed when it is read."""
        return LazyTexts(self.ids_of, range(len(self.completion_ids)))

    def ids_of(self, row: int):
        """The ids of one completion, with what it read: a list of int."""
        return self.completion_ids[row][self.present(row)].tolist()

    def present(self, rows):
        """Where the completions of these rows have tokens: bool[... t]."""
        mask = self.completion_mask[rows]
        return mask if self.observed_mask is None else mask | self.observed_mask[rows]

    @property
    def acceptance_rate(self):
        """The share of drafted tokens that were accepted; nan if none was drafted."""
        return _ratio(self.accepted.sum(), self.drafted.sum())

    @property
    def tokens_per_step(self):
        """Tokens a completion gains in one step of the model; nan if no token was drafted.

        A step drafts one token. The first token does not count: it is sampled from the prompt's logits.
        """
        return _ratio((self.completion_mask.sum(1) - 1).sum(), self.drafted.sum())


def _ratio(part, whole):
    return float(part / whole) if whole else float("nan")


class RolloutLog:
    """The completions that a rollout has from earlier calls, and the receiver of those that end in this one.
    This class has none and keeps none.

    done: row -> {"ids", "logprobs", "finished", ...} of completions that ended before: they are not sampled.
    weight_sync_seconds: set by the rollout, how long it took to have the parameters in the form for decoding.
    exchanges, exchange_rounds: set by it, how often a layer's tokens went to their experts, and in how many
    rounds of parallel.round_trip, the mean over devices; 0 where they go in another way.
    conversations: a conversations.Conversations, which answers the turns, or None for single turns.
    keeps_routing, keeps_candidates: whether the rollout keeps the experts of its tokens, and what top-p and
    top-k left to draw each from; it sets `kept`, a kept.Kept.
    """

    done = types.MappingProxyType({})
    conversations = None
    weight_sync_seconds, exchanges, exchange_rounds = 0.0, 0, 0.0
    keeps_routing = keeps_candidates = False
    kept = None

    def turn_length(self):
        """The most tokens of a turn of conversations; None where the completion's length alone limits it."""
        return None if self.conversations is None else self.conversations.use.limits.turn_length

    def add(self, rows, rollout):
        """Take the rows that have just ended, int[e], of the Rollout as it is now."""


class MeasuredLog(RolloutLog):
    """The log of answers that are measured: between two of them a run that was asked to stop is left."""

    def add(self, rows, rollout):
        leave_if_asked("the measurement")


def empty_rollout(rows: int, length: int, converses: bool = False):
    """A Rollout without any sampled token. converses: of conversations."""
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
    """Put what a log has into rows of a rollout that are empty, in place."""
    for row, line in log.done.items():
        ids = line["ids"]
        rollout.completion_ids[row, : len(ids)] = ids
        rollout.completion_mask[row, : len(ids)] = True
        # JSON's float64 has every float32 exactly
        rollout.sampler_logprobs[row, : len(ids)] = np.float32(line["logprobs"])
        rollout.truncated[row] = not line["finished"]
        if rollout.observed_mask is not None:
            rollout.observed_mask[row, : len(ids)] = line["observed"]
            rollout.completion_mask[row] &= ~rollout.observed_mask[row]


def copy_completions(rollout: Rollout, rows, state, slots):
    """Copy the completions in `slots` of state, a slots.Slots, to `rows` of rollout: int[e] each."""
    state = of_slots(state, slots)
    # Past its length a slot still has the tokens of the request that it had before
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
    """What a Rollout needs of some slots, as numpy: only these leave the devices."""
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
    """int[e], with the last one repeated up to a power of two, so that few sizes are compiled."""
    width = 1 << (len(numbers) - 1).bit_length()
    return np.append(numbers, np.full(width - len(numbers), numbers[-1]))


@jax.jit
def _take(tree, rows):
    return jax.tree.map(lambda array: array[rows], tree)


def check_finite(rollout: Rollout, rows, state, slots):
    """Raise NotFinite, naming the devices of its slot, where a completion of copy_completions has a
    log-probability that is not finite: its weights, or the device, are broken.
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
    """A tree of jax arrays as numpy, even if other processes have parts of them."""
    apart = [
        array
        for array in jax.tree.leaves(tree)
        if not (array.is_fully_addressable or array.is_fully_replicated)
    ]
    if apart:
        # numpy reads only what this process holds: replicate the arrays first, all in one program
        tree = _replicating(apart[0].sharding.mesh)(tree)
    return jax.tree.map(np.asarray, tree)


@functools.cache
def _replicating(mesh):
    """The jitted copy of a tree to every device of a mesh: one for all calls, as jit compiles each new
    function anew.
    """
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
