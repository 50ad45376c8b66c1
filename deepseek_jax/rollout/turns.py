"""Decoding of conversations: the model's turns, and texts between them that it reads.

Slots read texts of different lengths at different times, so here, as in speculative decoding, a token's cache
index is its position. A slot whose turn has ended keeps its cache: it has ended=True until it has read the
text that follows. A text is read in chunks of CHUNKS tokens, in every slot that has one of this size to read:
which chunks a text has depends on its length alone, so that the numbers do not depend on the other slots.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models.cache import PositionWrite
from deepseek_jax.parallel.decoding import own_rows
from deepseek_jax.rollout import kept, steps
from deepseek_jax.rollout.slots import (
    Turns,
    lengthen,
    on_rollout_mesh,
    pinned,
    repeat,
    rooms,
)
from deepseek_jax.rollout.weights import layers_of

# The sizes in which texts are read. Each is a program of its own
CHUNKS = (8, 32, 128)


class Chunk(NamedTuple):
    """What slots read at once. tokens: int32[b c]. counts: int32[b], how many of them are a slot's, 0 for
    none. resumes: bool[b], whether the slot's next turn begins after them; keys: typed[b] and limit: int32[b]
    are those of that turn.
    """

    tokens: jax.Array
    counts: jax.Array
    resumes: jax.Array
    keys: jax.Array
    limit: jax.Array


def chunk_of(left: int):
    """The size of the next chunk of a text with this many tokens left."""
    return next((size for size in CHUNKS if size >= left), CHUNKS[-1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
@on_rollout_mesh
def empty_slots(config, count, prompt_room, completion_room, max_completion_length, longest):
    """slots.empty_slots, for turns of at most `longest` tokens: int32[]."""
    slots = steps.empty_slots(config, count, prompt_room, completion_room, max_completion_length)
    turns = Turns(
        observed=jnp.zeros(slots.tokens.shape, bool),
        limit=jnp.zeros(count, jnp.int32),
        longest=jnp.minimum(longest, max_completion_length).astype(jnp.int32),
    )
    return pinned(slots._replace(turns=turns))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
@on_rollout_mesh
def seat(config, sampling, eos_ids, slots, seating: steps.Seating, prefilled):
    """steps.seat, at the start of a conversation."""
    turns, seats = slots.turns, seating.seats
    turns = turns._replace(
        observed=turns.observed & ~seats[:, None],
        limit=jnp.where(seats, turns.longest, turns.limit),
    )
    slots = slots._replace(turns=turns)
    return steps.seat(config, sampling, eos_ids, slots, seating, prefilled)


def _one_step(config, sampling, eos_ids, weights, tables, slots):
    room = sum(rooms(tables, slots))
    index_b1 = (slots.prompt_length + slots.length - 1)[:, None]
    write = PositionWrite(index_b1, jnp.arange(room) <= index_b1)
    return steps.step_of(config, sampling, eos_ids, weights, tables, slots, write)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
@on_rollout_mesh
def decode(config, sampling, eos_ids, weights, tables, slots, ends, count):
    """steps.decode, for at most `count` tokens: int32[]."""
    body = functools.partial(_one_step, config, sampling, eos_ids, weights, tables)
    return repeat(body, slots, ends, rooms(tables, slots)[1], count)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
@on_rollout_mesh
def read(config, weights, tables, slots, chunk: Chunk):
    """Have slots read a chunk of the texts that follow their turns: -> Slots.

    A slot's last token is in no cache yet: it is run here, and the last token of the chunk is not.
    """
    c, room = chunk.tokens.shape[1], sum(rooms(tables, slots))
    is_own_bc = jnp.arange(c) < chunk.counts[:, None]
    index_bc = (slots.prompt_length + slots.length - 1)[:, None] + jnp.arange(c)
    write = PositionWrite(
        # Past the end: dropped
        jnp.where(is_own_bc, index_bc, room),
        jnp.arange(room) <= index_bc[..., None],
    )
    rope = [jnp.take(table, index_bc, axis=0, mode="clip") for table in tables]
    run_bc = jnp.concatenate([slots.last_token[:, None], chunk.tokens[:, :-1]], axis=1)
    x_bcd = steps.embed(weights, run_bc)
    caches, experts = [], []
    for index, layer in enumerate(layers_of(weights, x_bcd)):
        x_bcd, cache, chosen = steps.layer_at(config, index).apply(
            {"params": layer}, x_bcd, rope, slots.caches[index], write, method="extend"
        )
        x_bcd = own_rows(x_bcd)
        caches.append(cache)
        experts.append(chosen)
    return pinned(_after(slots._replace(caches=caches), chunk, kept.stacked(experts)))


def _after(slots, chunk, experts_bcla):
    """The Slots whose caches have the chunk, with its tokens."""
    b, c = chunk.tokens.shape
    has_b, last = chunk.counts > 0, jnp.maximum(chunk.counts - 1, 0)[:, None]
    past, at_bc = slots.tokens.shape[1], slots.length[:, None] + jnp.arange(c)
    at_bc = jnp.where(jnp.arange(c) < chunk.counts[:, None], at_bc, past)
    at = jnp.arange(b)[:, None], at_bc
    if slots.experts is not None:
        # Those of the tokens that were run, which begin one place before
        of_run = jnp.arange(b)[:, None], jnp.where(at_bc < past, at_bc - 1, past)
        own = slots.experts.at[of_run].set(experts_bcla, mode="drop")
        slots = slots._replace(experts=own)
    if slots.candidates is not None:
        slots = slots._replace(candidates=slots.candidates.at[at].set(-1, mode="drop"))
    last_token = jnp.take_along_axis(chunk.tokens, last, axis=1)[:, 0]
    turns = slots.turns
    return slots._replace(
        length=slots.length + chunk.counts,
        last_token=jnp.where(has_b, last_token, slots.last_token),
        tokens=slots.tokens.at[at].set(chunk.tokens, mode="drop"),
        logprobs=slots.logprobs.at[at].set(0.0, mode="drop"),
        keys=jnp.where(chunk.resumes, chunk.keys, slots.keys),
        ended=slots.ended & ~chunk.resumes,
        stopped=slots.stopped & ~chunk.resumes,
        turns=turns._replace(
            observed=turns.observed.at[at].set(True, mode="drop"),
            limit=jnp.where(chunk.resumes, chunk.limit, turns.limit),
        ),
    )


PARTS = steps.Parts(steps.decoding_weights, empty_slots, steps.prefill, seat, decode, lengthen)
