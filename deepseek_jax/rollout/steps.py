"""A step of decoding, and what the programs of rollout.decode are made of: prefill prompts, seat requests in
slots, sample a token in each, run more tokens.

Around a ring every slot writes the same cache index in a step, prompt room + (step mod completion room): the
mask, not the order, marks a slot's own tokens, so that a slot can be reseated at any step. Else a token's
cache index is its position.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models.cache import CacheWrite, PositionWrite
from deepseek_jax.models.decoder import DecoderLayer
from deepseek_jax.models.heads import head_weight
from deepseek_jax.models.layers import rms_norm
from deepseek_jax.ops.dot import dot
from deepseek_jax.parallel import constrain
from deepseek_jax.parallel.decoding import own_rows, own_slots
from deepseek_jax.rollout import kept
from deepseek_jax.rollout.sampling import sample
from deepseek_jax.rollout.slots import append, pinned, rooms
from deepseek_jax.rollout.weights import layers_of


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


def logits_of_stream(config, weights, x_bd):
    """`logits` of hidden states before the final norm [m d]."""
    return logits(config, weights, rms_norm(x_bd, weights["final_norm"], config.rms_norm_eps))


def run_prompts(config, weights, tables, tokens, lengths):
    """Run prompts, tokens int32[p t], right-padded, lengths int32[p], up to the final norm.

    Returns (caches a layer, x [p t d], experts uint16[p t l a] or None).
    """
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


def run_more(config, weights, tables, slots, tokens, write):
    """Run further tokens of every slot, int32[b t], up to the final norm. write: their PositionWrite.

    Returns (x [b t d], caches a layer, experts uint16[b t l a] or None).
    """
    rope = rotations_at(tables, write.index)
    x_btd = embed(weights, tokens)
    caches, experts = [], []
    for index, layer in enumerate(layers_of(weights, x_btd)):
        x_btd, cache, chosen = layer_at(config, index).apply(
            {"params": layer}, x_btd, rope, slots.caches[index], write, method="extend"
        )
        x_btd = own_rows(x_btd)
        caches.append(cache)
        experts.append(chosen)
    return x_btd, caches, kept.stacked(experts)


def rotations_at(tables, positions):
    """RoPE's tables at positions: int32[b t]."""
    # clip: a full slot looks one past the tables, where jnp.take would by default return NaN
    return [jnp.take(table, positions, axis=0, mode="clip") for table in tables]


class Seating(NamedTuple):
    """The requests that some of b slots get. seats: bool[b], which slots. rows: int32[b], the prefilled row
    that each continues; lengths: int32[b], of its prompt. keys: typed[b].
    """

    seats: jax.Array
    rows: jax.Array
    lengths: jax.Array
    keys: jax.Array


def seated(sampling, eos_ids, slots, seating: Seating, prefilled_caches, prefilled_logits):
    """The Slots with requests seated, and the first token of each sampled from the logits of its row."""
    seats, rows, prompt_length, keys = seating

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
    return append(slots, tokens, logprobs, seats, eos_ids, candidates)


def _apart(cache, count):
    """Caches of count sequences, [z s x] or, of no heads, [b s x] -> [b k s x]."""
    return cache.reshape(count, -1, *cache.shape[1:])


def latest_write(how, tables, slots):
    """Where a step writes each slot's latest token, and what each slot sees: CacheWrite or PositionWrite."""
    prompt_room, completion_room = rooms(tables, slots)
    if not how.is_ring:
        index_b1 = (slots.prompt_length + slots.length - 1)[:, None]
        return PositionWrite(index_b1, jnp.arange(prompt_room + completion_room) <= index_b1)
    # How many steps ago each index of the ring was written: this step writes the one of age 0
    age_t = (slots.step - jnp.arange(completion_room)) % completion_room
    seen_prompt = jnp.arange(prompt_room) < slots.prompt_length[:, None]
    seen = jnp.concatenate([seen_prompt, age_t < slots.length[:, None]], axis=1)
    return CacheWrite(prompt_room + slots.step % completion_room, seen, ring=prompt_room)


def one_step(how, sampling, eos_ids, weights, tables, slots):
    """Sample one token in every slot that has not ended: -> Slots."""
    config, active, write = how.config, ~slots.ended, latest_write(how, tables, slots)
    # RoPE needs a token's position in its text, which is not its index in the ring
    rope = rotations_at(tables, (slots.prompt_length + slots.length - 1)[:, None])
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
    sampled = sample(step_keys, logits_of_stream(config, weights, x_bd), sampling)
    tokens, logprobs, candidates = sampled
    # One sum: an operation for each layer would take as long as a product
    slots = slots._replace(caches=caches, step=slots.step + 1, rounds=jnp.stack(rounds).sum(0))
    return pinned(append(slots, tokens, logprobs, active, eos_ids, candidates))
