"""Texts that slots read between the model's turns, in conversations.

Slots read texts of different lengths at different times. A slot keeps its cache after the end of
its turn: it has ended=True until it has read the text that follows. A text is read in chunks of the
sizes in CHUNKS. All slots that have a chunk of one size to read read it together. Which chunks a
text has depends only on its length, so that the numbers do not depend on the other slots.

Tests: tests/rollout/test_slots.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.models.cache import PositionWrite
from deepseek_jax.rollout import steps
from deepseek_jax.rollout.slots import Turns, rooms

# The sizes of chunks in which texts are read. A program is compiled for each
CHUNKS = (8, 32, 128)


class Chunk(NamedTuple):
    """A chunk of tokens for each of b slots to read.

    Attributes:
        tokens: int32[b c].
        counts: int32[b], how many of the tokens the slot reads; 0 for none.
        resumes: bool[b], True if the slot's next turn begins after them.
        keys: typed[b], the random stream of that turn.
        limit: int32[b], the length at which that turn ends.
    """

    tokens: jax.Array | np.ndarray
    counts: jax.Array | np.ndarray
    resumes: jax.Array | np.ndarray
    keys: jax.Array
    limit: jax.Array | np.ndarray


def chunk_of(num_remaining: int) -> int:
    """Return the size of the next chunk of a text that has `num_remaining` tokens left."""
    return next((size for size in CHUNKS if size >= num_remaining), CHUNKS[-1])


def no_turns(slots, turn_length):
    """Create the Turns of empty Slots.

    Args:
        turn_length: int32[], the most tokens of a turn.
    """
    return Turns(
        observed=jnp.zeros(slots.tokens.shape, bool),
        limit=jnp.zeros(len(slots.ended), jnp.int32),
        longest=jnp.minimum(turn_length, slots.tokens.shape[1]).astype(jnp.int32),
    )


def begun(turns: Turns, seats):
    """Return the Turns after conversations have started in some slots.

    Args:
        seats: bool[b], the slots.
    """
    return turns._replace(
        observed=turns.observed & ~seats[:, None],
        limit=jnp.where(seats, turns.longest, turns.limit),
    )


def have_read(config, weights, tables, slots, chunk: Chunk):
    """Return the Slots after they have read a chunk of the texts that follow their turns.

    A slot's last token is in no cache yet. It is run here, and the last token of the chunk is not.
    """
    c, room = chunk.tokens.shape[1], sum(rooms(tables, slots))
    is_own_bc = jnp.arange(c) < chunk.counts[:, None]
    index_bc = (slots.prompt_length + slots.length - 1)[:, None] + jnp.arange(c)
    write = PositionWrite(
        # Entries past the end are dropped
        jnp.where(is_own_bc, index_bc, room),
        jnp.arange(room) <= index_bc[..., None],
    )
    run_bc = jnp.concatenate([slots.last_token[:, None], chunk.tokens[:, :-1]], axis=1)
    _, caches, experts = steps.run_more(config, weights, tables, slots, run_bc, write)
    return _after(slots._replace(caches=caches), chunk, experts)


def _after(slots, chunk, experts_bcla):
    """Add the tokens of a chunk to Slots that have the chunk in their caches already."""
    b, c = chunk.tokens.shape
    has_b, last_index = chunk.counts > 0, jnp.maximum(chunk.counts - 1, 0)[:, None]
    past_end, at_bc = slots.tokens.shape[1], slots.length[:, None] + jnp.arange(c)
    at_bc = jnp.where(jnp.arange(c) < chunk.counts[:, None], at_bc, past_end)
    places = jnp.arange(b)[:, None], at_bc
    if slots.experts is not None:
        # The experts of the tokens that were run, which begin one place before the chunk
        run_places = jnp.arange(b)[:, None], jnp.where(at_bc < past_end, at_bc - 1, past_end)
        experts = slots.experts.at[run_places].set(experts_bcla, mode="drop")
        slots = slots._replace(experts=experts)
    if slots.candidates is not None:
        slots = slots._replace(candidates=slots.candidates.at[places].set(-1, mode="drop"))
    last_token = jnp.take_along_axis(chunk.tokens, last_index, axis=1)[:, 0]
    turns = slots.turns
    return slots._replace(
        length=slots.length + chunk.counts,
        last_token=jnp.where(has_b, last_token, slots.last_token),
        tokens=slots.tokens.at[places].set(chunk.tokens, mode="drop"),
        logprobs=slots.logprobs.at[places].set(0.0, mode="drop"),
        keys=jnp.where(chunk.resumes, chunk.keys, slots.keys),
        ended=slots.ended & ~chunk.resumes,
        stopped=slots.stopped & ~chunk.resumes,
        turns=turns._replace(
            observed=turns.observed.at[places].set(True, mode="drop"),
            limit=jnp.where(chunk.resumes, chunk.limit, turns.limit),
        ),
    )
