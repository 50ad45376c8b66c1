"""Slots, the state of decoding: how they begin, get tokens, and how their caches grow."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models.cache import empty_cache
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.v4.cache import LayerCache, empty_caches
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.parallel.decoding import decoding_axes, own_slots
from deepseek_jax.parallel.shard import current_mesh


class Decoding(NamedTuple):
    """How a rollout decodes; its programs are compiled for these values.

    Attributes:
        config: The model.
        drafts: True if a step also verifies a token that the multi-token prediction module has
            drafted, see rollout.speculative.
        turns: True if completions are conversations, which continue after a turn, see
            rollout.turns.
    """

    config: Network
    drafts: bool = False
    turns: bool = False

    @property
    def is_ring(self):
        """True if in a step all slots write the same index of their caches, around a ring.

        It is False if slots can gain different numbers of tokens at once. Then a token's index is
        its position.
        """
        return not (self.drafts or self.turns)


def on_rollout_mesh(function):
    """Decorate a function of (Decoding, ...) to be traced with the axes of parallel.decoding."""

    @functools.wraps(function)
    def placed(decoding, *arguments):
        config = decoding.config
        with decoding_axes(config.num_attention_heads, config.n_routed_experts or 1):
            return function(decoding, *arguments)

    return placed


class Drafting(NamedTuple):
    """What drafting adds to Slots, for b slots; Slots.caches also ends with the module's own cache.

    The module runs on pairs: a token's hidden state, and the token after it. Every step yields two
    pairs. The second pair is void if the draft was rejected.

    Attributes:
        hidden: [b z d], the hidden states of the pairs, after the final norm.
        next_tokens: int32[b z], the tokens of the pairs.
        fresh: int32[b], the number of pairs that are not void: 1 or 2.
        drafted: int32[b], the number of tokens drafted so far, which is the number of steps of the
            model.
        accepted: int32[b], the number of drafts that were accepted so far.
    """

    hidden: jax.Array
    next_tokens: jax.Array
    fresh: jax.Array
    drafted: jax.Array
    accepted: jax.Array


class Turns(NamedTuple):
    """What conversations add to Slots, for b slots, see rollout.turns.

    Attributes:
        observed: bool[b t], True on tokens of Slots.tokens that the model did not sample.
        limit: int32[b], the length at which the current turn ends.
        longest: int32[], the most tokens of a turn.
    """

    observed: jax.Array
    limit: jax.Array
    longest: jax.Array


class Slots(NamedTuple):
    """The state of decoding, for b slots. A slot that has ended, or never began, has ended=True.

    Attributes:
        caches: One for each layer, see models.cache.empty_cache and models.v4.cache.
        step: int32[], decoding steps so far.
        keys: typed[b], the random stream of each slot's request.
        prompt_length: int32[b].
        length: int32[b], tokens after the prompt so far: sampled, and in conversations also read.
        last_token: int32[b].
        ended: bool[b].
        stopped: bool[b], True if an end token ended the slot, and not a lack of room.
        tokens: int32[b t].
        logprobs: float32[b t].
        rounds: int32[devices], the rounds of parallel.few_tokens, summed over steps and layers.
        drafting: A Drafting if tokens are drafted.
        experts: uint16[b t l a], see kept.with_experts, if the rollout keeps them.
        candidates: int32[b t n], see sampling.sample, if the rollout keeps them.
        turns: A Turns if completions are conversations.
    """

    caches: list
    step: jax.Array
    keys: jax.Array
    prompt_length: jax.Array
    length: jax.Array
    last_token: jax.Array
    ended: jax.Array
    stopped: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    rounds: jax.Array
    drafting: Drafting | None = None
    experts: jax.Array | None = None
    candidates: jax.Array | None = None
    turns: Turns | None = None


def empty_slots(decoding, count, prompt_room, completion_room, longest):
    """Create slots that have all ended.

    Args:
        count: The number of slots.
        prompt_room: Tokens of a prompt that the caches have room for.
        completion_room: Tokens of a completion that the caches have room for; `grown` gives more.
        longest: The most tokens of a completion.
    """
    zeros, mesh = jnp.zeros(count, jnp.int32), current_mesh()
    return Slots(
        caches=_empty_caches(decoding, count, prompt_room, completion_room, longest),
        step=jnp.int32(0),
        keys=jax.random.split(jax.random.key(0), count),
        prompt_length=zeros,
        length=zeros,
        last_token=zeros,
        ended=jnp.ones(count, bool),
        stopped=jnp.zeros(count, bool),
        tokens=jnp.zeros((count, longest), jnp.int32),
        logprobs=jnp.zeros((count, longest), jnp.float32),
        rounds=jnp.zeros(1 if mesh is None else mesh.size, jnp.int32),
    )


def _empty_caches(decoding, count, prompt_room, completion_room, longest):
    config = decoding.config
    if isinstance(config, V4Config):
        # Room for the longest completion from the start: few of their numbers grow with it
        return empty_caches(config, count, prompt_room + longest, config.dtype)
    return [
        empty_cache(config, count, prompt_room + completion_room, config.dtype)
        for _ in range(config.num_hidden_layers + decoding.drafts)
    ]


def pinned(slots):
    """Return the Slots with all arrays except caches pinned to the devices of their slots.

    Caches stay where they are written.
    """

    def pin(array):
        return own_slots(array) if array.ndim else array

    return jax.tree.map(pin, slots._replace(caches=None))._replace(caches=slots.caches)


def append(slots, tokens, logprobs, seats, eos_ids, candidates=None):
    """Append a sampled token to some slots, and return the Slots.

    Args:
        tokens: int32[b], the tokens.
        logprobs: float32[b].
        seats: bool[b], the slots that get their token.
        eos_ids: Ids that end a completion.
        candidates: int32[b n], if the rollout keeps them.
    """
    places = jnp.arange(len(tokens)), slots.length
    length = slots.length + seats
    # -1 is no token: without eos_ids only a lack of room ends a completion
    is_stop = jnp.isin(tokens, jnp.array(eos_ids or (-1,)))
    is_full = length == (slots.tokens.shape[1] if slots.turns is None else slots.turns.limit)
    if slots.candidates is not None:
        new_candidates = jnp.where(seats[:, None], candidates, slots.candidates[places])
        slots = slots._replace(
            candidates=slots.candidates.at[places].set(new_candidates, mode="drop")
        )
    return slots._replace(
        length=length,
        last_token=jnp.where(seats, tokens, slots.last_token),
        ended=jnp.where(seats, is_stop | is_full, slots.ended),
        stopped=jnp.where(seats, is_stop, slots.stopped),
        # mode="drop": a full slot's length is one past the last index
        tokens=slots.tokens.at[places].set(
            jnp.where(seats, tokens, slots.tokens[places]), mode="drop"
        ),
        logprobs=slots.logprobs.at[places].set(
            jnp.where(seats, logprobs, slots.logprobs[places]), mode="drop"
        ),
    )


def repeat(body, slots, ends, most, steps=None):
    """Run a step again and again until a limit is reached, and return the Slots.

    It stops when every slot has ended, when `ends` more slots have ended, when a slot that has not
    ended has more than `most` tokens, or when `steps` steps have run.

    Args:
        body: A step, a function Slots -> Slots.
        ends: int32[].
        most: The most tokens of a completion for which the caches have room.
        steps: int32[]; None for any number of steps.
    """
    # Free slots have ended already: count only slots that end in this loop
    ended_before, first_step = slots.ended, slots.step

    def keep_on(slots):
        ended = (slots.ended & ~ended_before).sum()
        is_full = jnp.any(~slots.ended & (slots.length > most))
        goes_on = jnp.any(~slots.ended) & (ended < ends) & ~is_full
        return goes_on if steps is None else goes_on & (slots.step - first_step < steps)

    return jax.lax.while_loop(keep_on, body, slots)


def rooms(tables, slots):
    """Return the prompt room and the completion room of the caches, in tokens.

    Args:
        tables: From decode.rotations, for the longest text.
    """
    longest = slots.tokens.shape[1]
    prompt_room = len(tables[0]) - longest
    # Caches of DeepSeek-V4 do not grow
    if isinstance(slots.caches[0], LayerCache):
        return prompt_room, longest
    return prompt_room, jax.tree.leaves(slots.caches)[0].shape[1] - prompt_room


def grown(decoding, tables, slots, completion_room):
    """Return the Slots with caches of a larger completion room.

    Every token gets the index that it would have if the room had always been this large.
    """
    prompt_room, old_room = rooms(tables, slots)
    if not decoding.is_ring:

        def longer(cache):
            return own_slots(jnp.pad(cache, ((0, 0), (0, completion_room - old_room), (0, 0))))

        return slots._replace(caches=jax.tree.map(longer, slots.caches))
    index_t = jnp.arange(completion_room)
    # The latest step before this one that would write each index of the larger ring
    step_t = slots.step - 1 - (slots.step - 1 - index_t) % completion_room
    # The smaller ring has overwritten earlier steps, and no slot has a token of them
    is_there = step_t >= slots.step - old_room

    def larger(cache):
        prompt, ring = cache[:, :prompt_room], cache[:, prompt_room:]
        ring = jnp.where(is_there[:, None], jnp.take(ring, step_t % old_room, axis=1), 0)
        return own_slots(jnp.concatenate([prompt, ring.astype(cache.dtype)], axis=1))

    return slots._replace(caches=jax.tree.map(larger, slots.caches))
