"""The three compiled parts of a rollout: prefill prompts, seat requests in slots, decode until one ends.

Every slot writes the same cache index in a step, prompt room + (step mod completion room): a slot's tokens
stand in a ring, and the mask, not the order, marks its own. So a slot can be reseated at any step.
The completion room of the caches grows with the longest completion that decodes: attention reads all of it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models.cache import CacheWrite
from deepseek_jax.models.decoder import DecoderLayer
from deepseek_jax.models.heads import head_weight
from deepseek_jax.models.layers import position_tables, rms_norm
from deepseek_jax.ops.dot import dot
from deepseek_jax.parallel import constrain
from deepseek_jax.parallel.decoding import own_rows, own_slots
from deepseek_jax.rollout import kept
from deepseek_jax.rollout.sampling import sample
from deepseek_jax.rollout.slots import (
    append,
    empty_slots,
    grow,
    on_rollout_mesh,
    pinned,
    repeat,
    rooms,
)
from deepseek_jax.rollout.weights import decoding_weights, layers_of


class Parts(NamedTuple):
    """The functions of one way of decoding, in the order of use: this module's, or speculative's."""

    decoding_weights: Callable
    empty_slots: Callable
    prefill: Callable
    seat: Callable
    decode: Callable
    grow: Callable


def layer_at(config, index):
    """The module of layer `index`, without its weights."""
    return DecoderLayer(config, is_moe=index >= config.num_dense_layers)


def embed(weights, tokens):
    """The embedding's rows of tokens: int32[...] -> [... d]."""
    return own_rows(jnp.take(weights["embedding"], tokens, axis=0))


def logits(config, weights, hidden_md):
    """Hidden states after the final norm [m d] -> float32[m v]."""
    # Whole rows first: else the compiler sends them round piece by piece, and reads the head for each piece
    hidden_md = own_rows(hidden_md)
    logits_mv = dot("md,vd->mv", hidden_md, head_weight(config, weights), jnp.float32)
    # From some of the vocabulary for many slots to all of it for a device's own slots, which it samples.
    # Pinned before, too, or the compiler gathers the head instead
    return own_slots(constrain(logits_mv, ("batch", "vocab")))


def _logits_of_stream(config, weights, x_bd):
    return logits(config, weights, rms_norm(x_bd, weights["final_norm"], config.rms_norm_eps))


@functools.partial(jax.jit, static_argnums=(0, 1))
def rotations(config, room):
    """RoPE's tables of positions 0 to room - 1, for prefill and decode: two float32[room, rope_dim / 2].

    Computed apart from them, because XLA would move cosines and sines into every layer's rotation.
    """
    return position_tables(config, jnp.arange(room))


@functools.partial(jax.jit, static_argnums=0)
@on_rollout_mesh
def prefill(config, weights, tables, tokens, lengths):
    """Run prompts: tokens int32[p t], right-padded, lengths int32[p] -> (caches a layer, logits
    float32[p v], experts uint16[p t l a] of each token or None). tables: of `rotations`.
    """
    caches, x_ptd, experts = run_prompts(config, weights, tables, tokens, lengths)
    # Only the last token's logits are needed: those of all would be [p t v]
    last_pd = jnp.take_along_axis(x_ptd, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return caches, _logits_of_stream(config, weights, last_pd), experts


def run_prompts(config, weights, tables, tokens, lengths):
    """`prefill` up to the final norm -> (caches a layer, x [p t d], experts uint16[p t l a] or None)."""
    t = tokens.shape[1]
    segment_ids = (jnp.arange(t) < lengths[:, None]).astype(jnp.int32)
    rope = [table[:t] for table in tables]
    x_ptd = embed(weights, tokens)
    caches, experts = [], []
    for index, layer in enumerate(layers_of(weights, x_ptd)):
        x_ptd, report, remembered = layer_at(config, index).apply(
            {"params": layer}, x_ptd, rope, segment_ids
        )
        x_ptd = own_rows(x_ptd)
        caches.append(remembered)
        experts.append(report.experts)
    return caches, x_ptd, kept.stacked(experts)


class Seating(NamedTuple):
    """The requests that some of b slots get. seats: bool[b], which slots. rows: int32[b], the prefilled row
    that each continues; lengths: int32[b], of its prompt. keys: typed[b].
    """

    seats: jax.Array
    rows: jax.Array
    lengths: jax.Array
    keys: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
@on_rollout_mesh
def seat(config, sampling, eos_ids, slots, seating: Seating, prefilled):
    """Seat requests, and sample the first token of each from the logits of its row.

    prefilled: (caches, logits) of `prefill`.
    """
    seats, rows, prompt_length, keys = seating
    prefilled_caches, prefilled_logits = prefilled

    def copy_prompt(cache, prefilled):
        room = prefilled.shape[1]
        new = own_slots(jnp.take(_apart(prefilled, len(prefilled_logits)), rows, axis=0))
        old = _apart(cache[:, :room], len(seats))
        new = jnp.where(seats[:, None, None, None], new, old).reshape(-1, room, cache.shape[-1])
        return own_slots(jax.lax.dynamic_update_slice_in_dim(cache, new, 0, axis=1))

    slots = slots._replace(
        # The ring is not cleared: decode's mask hides what an earlier request left there
        caches=jax.tree.map(copy_prompt, slots.caches, prefilled_caches),
        keys=jnp.where(seats, keys, slots.keys),
        prompt_length=jnp.where(seats, prompt_length, slots.prompt_length),
        length=jnp.where(seats, 0, slots.length),
    )
    step_keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.length)
    sampled = sample(step_keys, own_slots(prefilled_logits[rows]), sampling)
    tokens, logprobs, candidates = sampled
    return pinned(append(slots, tokens, logprobs, seats, eos_ids, candidates))


def _apart(cache, count):
    """Caches of count sequences, [z s x] or, of no heads, [b s x] -> [b k s x]."""
    return cache.reshape(count, -1, *cache.shape[1:])


def _ring_write(tables, slots):
    """Where a step of decoding writes, and what each slot sees: CacheWrite."""
    prompt_room, completion_room = rooms(tables, slots)
    # How many steps ago each index of the ring was written: this step writes the one of age 0
    age_t = (slots.step - jnp.arange(completion_room)) % completion_room
    seen_prompt = jnp.arange(prompt_room) < slots.prompt_length[:, None]
    seen = jnp.concatenate([seen_prompt, age_t < slots.length[:, None]], axis=1)
    return CacheWrite(prompt_room + slots.step % completion_room, seen, ring=prompt_room)


def _one_step(config, sampling, eos_ids, weights, tables, slots):
    """Sample one token in every slot that has not ended: -> Slots."""
    write = _ring_write(tables, slots)
    return step_of(config, sampling, eos_ids, weights, tables, slots, write)


def step_of(config, sampling, eos_ids, weights, tables, slots, write):
    """A step of decoding. write: the place in the caches of each slot's latest token."""
    active = ~slots.ended
    # RoPE needs a token's position in its text, which is not its index in the ring
    positions = slots.prompt_length + slots.length - 1
    rope = [jnp.take(table, positions[:, None], axis=0, mode="clip") for table in tables]
    x_bd = embed(weights, slots.last_token)
    caches, experts, rounds = [], [], [slots.rounds]
    for index, layer in enumerate(layers_of(weights, x_bd)):
        x_bd, cache, chosen, more = layer_at(config, index).apply(
            {"params": layer}, x_bd, rope, slots.caches[index], write, method="decode"
        )
        x_bd = own_rows(x_bd)
        caches.append(cache)
        experts.append(chosen)
        rounds += [] if more is None else [more]
    if slots.experts is not None:
        slots = kept.note(slots, kept.stacked(experts), active)
    step_keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.length)
    sampled = sample(step_keys, _logits_of_stream(config, weights, x_bd), sampling)
    tokens, logprobs, candidates = sampled
    # One sum: an operation for each layer would take as long as a product
    slots = slots._replace(caches=caches, step=slots.step + 1, rounds=jnp.stack(rounds).sum(0))
    return pinned(append(slots, tokens, logprobs, active, eos_ids, candidates))


# Slots are donated, so that the loop writes into their caches in place
@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
@on_rollout_mesh
def decode(config, sampling, eos_ids, weights, tables, slots, ends):
    """Sample token after token until every slot has ended, `ends` more have: int32[], or a cache is full."""
    body = functools.partial(_one_step, config, sampling, eos_ids, weights, tables)
    # The last token sampled is not in the cache yet: a step needs room for `length` tokens
    return repeat(body, slots, ends, rooms(tables, slots)[1])


# `decode` of a single token, for one who reads each as it comes. The cache has room for it
decode_one = functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)(
    on_rollout_mesh(_one_step)
)

PARTS = Parts(decoding_weights, empty_slots, prefill, seat, decode, grow)
