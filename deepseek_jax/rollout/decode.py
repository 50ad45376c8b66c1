"""The compiled programs of a rollout, in the order in which the engine calls them.

Tests: tests/rollout/test_engine.py.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models.layers import position_tables, rms_norm
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.models.v4.decoder import prefill as prefill_v4
from deepseek_jax.rollout import slots as slot_state
from deepseek_jax.rollout import speculative, steps, turns, v4, weights
from deepseek_jax.rollout.slots import on_rollout_mesh, pinned, repeat, rooms


class Prefilled(NamedTuple):
    """The result of a chunk of prompts, from which requests are seated.

    Attributes:
        caches: The prompts' cache, one for each layer.
        logits: float32[p v], of each prompt's last token.
        hidden: [p d], the hidden state of the last token, with drafts only; else None.
        experts: uint16[p t l a], the experts of each token; None for a dense model.
    """

    caches: list
    logits: jax.Array
    hidden: jax.Array | None
    experts: jax.Array | None


@functools.partial(jax.jit, static_argnums=0)
@on_rollout_mesh
def decoding_weights(decoding, params):
    """Convert parameters to the form for decoding, once per rollout, see weights.decoding_weights.

    With drafts the result has the weights of the multi-token prediction module too, as "mtp".
    """
    if isinstance(decoding.config, V4Config):
        return v4.decoding_weights(decoding.config, params)
    converted_weights = weights.decoding_weights(decoding.config, params)
    if decoding.drafts:
        converted_weights["mtp"] = speculative.module_weights(decoding.config, params)
    return converted_weights


@functools.partial(jax.jit, static_argnums=(0, 1))
def rotations(config, room):
    """Compute RoPE's tables of positions 0 to room - 1, for prefill and decode.

    It is a program of its own, because in prefill and decode XLA would move cosines and sines into
    every layer's rotation.

    Returns:
        Two arrays float32[room, rope_dim / 2]. For DeepSeek-V4, whose steps compute the angles of
        each kind of layer, one array int32[room], of which only the length is read.
    """
    if isinstance(config, V4Config):
        return [jnp.arange(room)]
    return position_tables(config, jnp.arange(room))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
@on_rollout_mesh
def empty_slots(decoding, count, prompt_room, completion_room, longest, turn_length=None):
    """Create empty slots, see slots.empty_slots.

    Args:
        decoding: The Decoding. With drafts or turns, the slots have fields for these.
        count: The number of slots.
        prompt_room: As in slots.empty_slots.
        completion_room: As in slots.empty_slots.
        longest: As in slots.empty_slots.
        turn_length: int32[], the most tokens of a conversation's turn; only if completions are
            conversations.
    """
    slots = slot_state.empty_slots(decoding, count, prompt_room, completion_room, longest)
    if decoding.drafts:
        slots = slots._replace(drafting=speculative.no_drafts(decoding.config, count))
    if decoding.turns:
        slots = slots._replace(turns=turns.no_turns(slots, turn_length))
    return pinned(slots)


@functools.partial(jax.jit, static_argnums=0)
@on_rollout_mesh
def prefill(decoding, weights, tables, tokens, lengths):
    """Run a chunk of prompts.

    Args:
        weights: From `decoding_weights`.
        tables: From `rotations`.
        tokens: int32[p t], right-padded.
        lengths: int32[p].

    Returns:
        A Prefilled.
    """
    config = decoding.config
    if isinstance(config, V4Config):
        hidden_pd, caches = prefill_v4(config, weights, tokens, lengths)
        return Prefilled(caches, steps.logits(config, weights, hidden_pd), None, None)
    caches, x_ptd, experts = steps.run_prompts(config, weights, tables, tokens, lengths)
    if decoding.drafts:
        x_ptd = rms_norm(x_ptd, weights["final_norm"], config.rms_norm_eps)
        module_inputs = weights, tables, tokens, lengths
        caches = [*caches, speculative.module_cache(config, *module_inputs, x_ptd)]
    # Only the last token's logits are needed: the logits of all tokens would be [p t v]
    last_pd = jnp.take_along_axis(x_ptd, (lengths - 1)[:, None, None], axis=1)[:, 0]
    if decoding.drafts:
        return Prefilled(caches, steps.logits(config, weights, last_pd), last_pd, experts)
    return Prefilled(caches, steps.logits_of_stream(config, weights, last_pd), None, experts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
@on_rollout_mesh
def seat(decoding, sampling, eos_ids, slots, seating: steps.Seating, prefilled: Prefilled):
    """Seat requests in slots, and sample the first token of each from the logits of its prompt."""
    if decoding.turns:
        slots = slots._replace(turns=turns.begun(slots.turns, seating.seats))
    slots = steps.seated(sampling, eos_ids, slots, seating, prefilled.caches, prefilled.logits)
    if decoding.drafts:
        slots = slots._replace(drafting=speculative.begun(slots, seating, prefilled.hidden))
    return pinned(slots)


# Slots are donated, so that the loop writes into their caches in place
@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
@on_rollout_mesh
def decode(decoding, sampling, eos_ids, weights, tables, slots, ends, count=None):
    """Sample token after token in all slots, until it is time to return the Slots.

    That is when every slot has ended, when `ends` more slots have ended, when a cache is full, or
    when `count` steps have run.

    Args:
        eos_ids: Ids that end a completion.
        weights: From `decoding_weights`.
        tables: From `rotations`.
        slots: The Slots, which are donated.
        ends: int32[].
        count: int32[]; None for any number of steps.
    """
    step = speculative.drafted_step if decoding.drafts else steps.one_step
    body = functools.partial(step, decoding, sampling, eos_ids, weights, tables)
    # The token that was sampled last is not in the cache yet: a step needs room for `length`
    # tokens, and for one more if it drafts
    return repeat(body, slots, ends, rooms(tables, slots)[1] - decoding.drafts, count)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
@on_rollout_mesh
def read(decoding, weights, tables, slots, chunk: turns.Chunk):
    """Let slots read a chunk of the texts that follow their turns, and return the Slots."""
    return pinned(turns.have_read(decoding.config, weights, tables, slots, chunk))


@functools.partial(jax.jit, static_argnums=(0, 3))
@on_rollout_mesh
def grow(decoding, tables, slots, completion_room):
    """Return the Slots with caches of a larger completion room."""
    return slot_state.grown(decoding, tables, slots, completion_room)
