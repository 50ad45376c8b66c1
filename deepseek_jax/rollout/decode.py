"""The compiled programs of a rollout, in the order in which the engine calls them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models.layers import position_tables, rms_norm
from deepseek_jax.rollout import slots as empty
from deepseek_jax.rollout import speculative, steps, turns, weights
from deepseek_jax.rollout.slots import on_rollout_mesh, pinned, repeat, rooms


class Prefilled(NamedTuple):
    """What prompts leave: their caches a layer, the logits float32[p v] of the last token, with drafts its
    hidden state [p d], and the experts uint16[p t l a] of each token, None of a dense model.
    """

    caches: list
    logits: jax.Array
    hidden: jax.Array | None
    experts: jax.Array | None


@functools.partial(jax.jit, static_argnums=0)
@on_rollout_mesh
def decoding_weights(how, params):
    """weights.decoding_weights, with drafts those of the module too, once a rollout."""
    found = weights.decoding_weights(how.config, params)
    if how.drafts:
        found["mtp"] = speculative.module_weights(how.config, params)
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def rotations(config, room):
    """RoPE's tables of positions 0 to room - 1, for prefill and decode: two float32[room, rope_dim / 2].

    Computed apart from them, because XLA would move cosines and sines into every layer's rotation.
    """
    return position_tables(config, jnp.arange(room))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
@on_rollout_mesh
def empty_slots(how, count, prompt_room, completion_room, longest, turn_length=None):
    """slots.empty_slots. turn_length: int32[], tokens of a turn of conversations."""
    found = empty.empty_slots(how, count, prompt_room, completion_room, longest)
    if how.drafts:
        found = found._replace(drafting=speculative.no_drafts(how.config, count))
    if how.turns:
        found = found._replace(turns=turns.no_turns(found, turn_length))
    return pinned(found)


@functools.partial(jax.jit, static_argnums=0)
@on_rollout_mesh
def prefill(how, weights, tables, tokens, lengths):
    """Run prompts: tokens int32[p t], right-padded, lengths int32[p] -> Prefilled. tables: of `rotations`."""
    config, hidden_pd = how.config, None
    caches, x_ptd, experts = steps.run_prompts(config, weights, tables, tokens, lengths)
    if how.drafts:
        x_ptd = rms_norm(x_ptd, weights["final_norm"], config.rms_norm_eps)
        rows = weights, tables, tokens, lengths
        caches = [*caches, speculative.module_cache(config, *rows, x_ptd)]
    # Only the last token's logits are needed: those of all would be [p t v]
    last_pd = jnp.take_along_axis(x_ptd, (lengths - 1)[:, None, None], axis=1)[:, 0]
    if how.drafts:
        return Prefilled(caches, steps.logits(config, weights, last_pd), last_pd, experts)
    return Prefilled(caches, steps.logits_of_stream(config, weights, last_pd), hidden_pd, experts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
@on_rollout_mesh
def seat(how, sampling, eos_ids, slots, seating: steps.Seating, prefilled: Prefilled):
    """Seat requests, and sample the first token of each from the logits of its row."""
    if how.turns:
        slots = slots._replace(turns=turns.begun(slots.turns, seating.seats))
    slots = steps.seated(sampling, eos_ids, slots, seating, prefilled.caches, prefilled.logits)
    if how.drafts:
        slots = slots._replace(drafting=speculative.begun(slots, seating, prefilled.hidden))
    return pinned(slots)


# Slots are donated, so that the loop writes into their caches in place
@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
@on_rollout_mesh
def decode(how, sampling, eos_ids, weights, tables, slots, ends, count=None):
    """Sample token after token until every slot has ended, `ends` more have: int32[], a cache is full, or, if
    it is given, `count` steps have run: int32[].
    """
    step = speculative.drafted_step if how.drafts else steps.one_step
    body = functools.partial(step, how, sampling, eos_ids, weights, tables)
    # The last token sampled is not in the cache yet: a step needs room for `length` tokens, and for a draft
    return repeat(body, slots, ends, rooms(tables, slots)[1] - how.drafts, count)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
@on_rollout_mesh
def read(how, weights, tables, slots, chunk: turns.Chunk):
    """Have slots read a chunk of the texts that follow their turns: -> Slots."""
    return pinned(turns.have_read(how.config, weights, tables, slots, chunk))


@functools.partial(jax.jit, static_argnums=(0, 3))
@on_rollout_mesh
def grow(how, tables, slots, completion_room):
    """The Slots with caches of a larger completion room."""
    return empty.grown(how, tables, slots, completion_room)
