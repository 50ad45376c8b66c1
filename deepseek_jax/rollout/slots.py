"""The state of decoding: the slots, their caches, and how both grow."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models import ModelConfig
from deepseek_jax.models.cache import empty_cache
from deepseek_jax.parallel.decoding import decoding, own_slots
from deepseek_jax.parallel.shard import current_mesh


class Decoding(NamedTuple):
    """How a rollout decodes; its programs are compiled for this.

    drafts: a step also verifies a token that the multi-token prediction module has drafted, see
    rollout.speculative. turns: completions are conversations, which go on after a turn, see rollout.turns.
    """

    config: ModelConfig
    drafts: bool = False
    turns: bool = False

    @property
    def is_ring(self):
        """Whether all slots write one index of the caches in a step, around a ring.

        Where slots gain different numbers of tokens at once, a token's index is its position.
        """
        return not (self.drafts or self.turns)


def on_rollout_mesh(function):
    """Trace a function of (Decoding, ...) with the table of axes of parallel.decoding."""

    @functools.wraps(function)
    def placed(how, *arguments):
        with decoding(how.config.num_attention_heads, how.config.n_routed_experts or 1):
            return function(how, *arguments)

    return placed


class Drafting(NamedTuple):
    """What drafting adds to Slots, b wide. The module's own cache is the last of Slots.caches.

    The module runs on pairs: a token's hidden state, and the token after it. Every step yields two pairs; the
    second is void if the draft was rejected.
    """

    hidden: jax.Array  # [b z d], after the final norm
    next_tokens: jax.Array  # int32[b z]
    fresh: jax.Array  # int32[b], the pairs that are not void: 1 or 2
    drafted: jax.Array  # int32[b], tokens drafted so far, which is steps of the model
    accepted: jax.Array  # int32[b], of those


class Turns(NamedTuple):
    """What conversations add to Slots, b wide, see rollout.turns."""

    observed: jax.Array  # bool[b t], True on tokens of `tokens` that the model did not sample
    limit: jax.Array  # int32[b], the length at which the turn under way ends
    longest: jax.Array  # int32[], tokens of a turn


class Slots(NamedTuple):
    """The state of decoding, b slots wide. A slot that has ended, or never began, has ended=True."""

    caches: list  # one a layer, as models.cache.empty_cache
    step: jax.Array  # int32[]
    keys: jax.Array  # typed[b], one stream a request
    prompt_length: jax.Array  # int32[b]
    length: jax.Array  # int32[b], tokens so far: sampled, and in conversations also read
    last_token: jax.Array  # int32[b]
    ended: jax.Array  # bool[b]
    stopped: jax.Array  # bool[b], by an end token and not for want of room
    tokens: jax.Array  # int32[b t]
    logprobs: jax.Array  # float32[b t]
    rounds: jax.Array  # int32[devices], of parallel.few_tokens, summed over steps and layers
    drafting: Drafting | None = None  # where tokens are drafted
    experts: jax.Array | None = None  # uint16[b t l a], of kept.note, where a rollout keeps them
    candidates: jax.Array | None = (
        None  # int32[b t n], of sampling.sample, where a rollout keeps them
    )
    turns: Turns | None = None  # of conversations


def empty_slots(how, count, prompt_room, completion_room, longest):
    """Slots of which all have ended, for completions of up to `longest` tokens. Their caches have room for
    prompts and completions of these lengths; `grow` gives more.
    """
    config, zeros = how.config, jnp.zeros(count, jnp.int32)
    return Slots(
        caches=[
            empty_cache(config, count, prompt_room + completion_room, config.dtype)
            for _ in range(config.num_hidden_layers + how.drafts)
        ],
        step=jnp.int32(0),
        keys=jax.random.split(jax.random.key(0), count),
        prompt_length=zeros,
        length=zeros,
        last_token=zeros,
        ended=jnp.ones(count, bool),
        stopped=jnp.zeros(count, bool),
        tokens=jnp.zeros((count, longest), jnp.int32),
        logprobs=jnp.zeros((count, longest), jnp.float32),
        rounds=jnp.zeros(1 if current_mesh() is None else current_mesh().size, jnp.int32),
    )


def pinned(slots):
    """The Slots, whose arrays are pinned to the devices of their slots; caches are where they are written."""

    def pin(array):
        return own_slots(array) if array.ndim else array

    return jax.tree.map(pin, slots._replace(caches=None))._replace(caches=slots.caches)


def append(slots, tokens, logprobs, seats, eos_ids, candidates=None):
    """Append a sampled token to each slot of seats: bool[b]. candidates: int32[b n], where they are kept."""
    at = jnp.arange(len(tokens)), slots.length
    length = slots.length + seats
    # -1 is no token: without eos_ids nothing stops a completion but its room
    stops = jnp.isin(tokens, jnp.array(eos_ids or (-1,)))
    is_full = length == (slots.tokens.shape[1] if slots.turns is None else slots.turns.limit)
    if slots.candidates is not None:
        own = jnp.where(seats[:, None], candidates, slots.candidates[at])
        slots = slots._replace(candidates=slots.candidates.at[at].set(own, mode="drop"))
    return slots._replace(
        length=length,
        last_token=jnp.where(seats, tokens, slots.last_token),
        ended=jnp.where(seats, stops | is_full, slots.ended),
        stopped=jnp.where(seats, stops, slots.stopped),
        # drop: a full slot's length is one past the last index
        tokens=slots.tokens.at[at].set(jnp.where(seats, tokens, slots.tokens[at]), mode="drop"),
        logprobs=slots.logprobs.at[at].set(
            jnp.where(seats, logprobs, slots.logprobs[at]), mode="drop"
        ),
    )


def repeat(body, slots, ends, most, steps=None):
    """Run body: Slots -> Slots until every slot has ended, `ends` more have: int32[], one that has not ended
    has more than `most` tokens, or, if that is given, it has run `steps` times: int32[].
    """
    # Free slots have ended already: only slots that end in this loop count
    ended_before, first = slots.ended, slots.step

    def keep_on(slots):
        ended = (slots.ended & ~ended_before).sum()
        is_full = jnp.any(~slots.ended & (slots.length > most))
        goes_on = jnp.any(~slots.ended) & (ended < ends) & ~is_full
        return goes_on if steps is None else goes_on & (slots.step - first < steps)

    return jax.lax.while_loop(keep_on, body, slots)


def rooms(tables, slots):
    """(prompt room, completion room) of the caches. tables: of `rotations`, for the longest text."""
    prompt_room = len(tables[0]) - slots.tokens.shape[1]
    return prompt_room, jax.tree.leaves(slots.caches)[0].shape[1] - prompt_room


def grown(how, tables, slots, completion_room):
    """The Slots with caches of a larger completion room. Every token gets the index that it would have if the
    room had always been so large.
    """
    prompt_room, old = rooms(tables, slots)
    if not how.is_ring:

        def longer(cache):
            return own_slots(jnp.pad(cache, ((0, 0), (0, completion_room - old), (0, 0))))

        return slots._replace(caches=jax.tree.map(longer, slots.caches))
    index_t = jnp.arange(completion_room)
    # The latest step before this one that writes each index of the larger ring
    step_t = slots.step - 1 - (slots.step - 1 - index_t) % completion_room
    # An earlier one is overwritten in the smaller ring: no slot has as many tokens
    is_there = step_t >= slots.step - old

    def larger(cache):
        prompt, ring = cache[:, :prompt_room], cache[:, prompt_room:]
        ring = jnp.where(is_there[:, None], jnp.take(ring, step_t % old, axis=1), 0)
        return own_slots(jnp.concatenate([prompt, ring.astype(cache.dtype)], axis=1))

    return slots._replace(caches=jax.tree.map(larger, slots.caches))
