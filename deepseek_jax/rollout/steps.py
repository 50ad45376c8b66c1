"""Steps of decoding: prefill prompts, seat requests, sample a token in each slot, run more tokens.

The programs of rollout.decode consist of these. Around a ring, every slot writes the same cache
index in a step: prompt room + (step mod completion room). The mask, not the order, marks a slot's
own tokens, so that a slot can be reseated at any step. Without a ring, a token's cache index is its
position.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.models.cache import CacheWrite, PositionWrite
from deepseek_jax.models.decoder import DecoderLayer
from deepseek_jax.models.layers import rms_norm
from deepseek_jax.models.network import head_weight
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.ops.dot import dot
from deepseek_jax.parallel.decoding import own_rows, own_slots
from deepseek_jax.parallel.shard import constrain
from deepseek_jax.rollout import kept, v4
from deepseek_jax.rollout.sampling import sample
from deepseek_jax.rollout.slots import append, pinned, rooms
from deepseek_jax.rollout.weights import layers_of


def layer_at(config, index):
    """Return the module of layer `index`, without its weights."""
    return DecoderLayer(config, is_moe=index >= config.num_dense_layers)


def embed(weights, tokens):
    """Return the embeddings [... d] of tokens int32[...]."""
    return own_rows(jnp.take(weights["embedding"], tokens, axis=0))


def logits(config, weights, hidden_md):
    """Compute the logits float32[m v] of hidden states [m d] after the final norm."""
    # Whole rows first: otherwise the compiler sends them round piece by piece, and reads the head
    # for each piece
    hidden_md = own_rows(hidden_md)
    logits_mv = dot("md,vd->mv", hidden_md, head_weight(config, weights), jnp.float32)
    # Logits move from a part of the vocabulary for many slots to the whole vocabulary for a
    # device's own slots, which it samples. They are pinned before they move, too: otherwise the
    # compiler gathers the head
    return own_slots(constrain(logits_mv, ("batch", "vocab")))


def logits_of_stream(config, weights, x_bd):
    """Compute the logits float32[b v] of the residual stream [b d] before the final norm."""
    return logits(config, weights, rms_norm(x_bd, weights["final_norm"], config.rms_norm_eps))


def run_prompts(config, weights, tables, tokens, lengths):
    """Run prompts up to the final norm.

    Args:
        weights: From decode.decoding_weights.
        tables: From decode.rotations.
        tokens: int32[p t], right-padded.
        lengths: int32[p].

    Returns:
        A list of the caches of each layer; the residual stream [p t d]; and the experts uint16[p t
        l a], None for a dense model.
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
    """Run further tokens of every slot up to the final norm.

    Args:
        weights: From decode.decoding_weights.
        tables: From decode.rotations.
        tokens: int32[b t].
        write: Their PositionWrite.

    Returns:
        The residual stream [b t d]; a list of the caches of each layer; and the experts uint16[b t
        l a], None for a dense model.
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
    """Return the rows of RoPE's tables at positions int32[b t]."""
    # mode="clip": a full slot looks one past the tables, where jnp.take would return NaN by default
    return [jnp.take(table, positions, axis=0, mode="clip") for table in tables]


class Seating(NamedTuple):
    """The requests that some of b slots get.

    Attributes:
        seats: bool[b], True for a slot that gets a request.
        rows: int32[b], the prefilled row that each request continues.
        lengths: int32[b], the length of its prompt.
        keys: typed[b], its random stream.
    """

    seats: jax.Array | np.ndarray
    rows: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    keys: jax.Array


def seated(sampling, eos_ids, slots, seating: Seating, prefilled_caches, prefilled_logits):
    """Return the Slots with requests seated, and the first token of each sampled.

    Args:
        sampling: How tokens are drawn.
        eos_ids: Ids that end a completion.
        prefilled_caches: The caches of the prefilled rows, one for each layer.
        prefilled_logits: float32[p v], the logits after each prefilled row.
    """
    seats, rows, prompt_length, keys = seating

    def copy_prompt(cache, prefilled):
        room = prefilled.shape[1]
        new = own_slots(jnp.take(_apart(prefilled, len(prefilled_logits)), rows, axis=0))
        old = _apart(cache[:, :room], len(seats))
        new = jnp.where(seats[:, None, None, None], new, old).reshape(cache[:, :room].shape)
        return own_slots(jax.lax.dynamic_update_slice_in_dim(cache, new, 0, axis=1))

    slots = slots._replace(
        # The ring is not cleared: the mask of decode hides the entries of an earlier request
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
    """Reshape the caches of `count` sequences to [b k s x].

    They are [z s x], or [b s x] without heads.
    """
    return cache.reshape(count, len(cache) // count, *cache.shape[1:])


def latest_write(decoding, tables, slots):
    """Return where a step writes each slot's latest token, and what each slot sees.

    That is a CacheWrite around a ring, else a PositionWrite.
    """
    prompt_room, completion_room = rooms(tables, slots)
    if not decoding.is_ring:
        index_b1 = (slots.prompt_length + slots.length - 1)[:, None]
        return PositionWrite(index_b1, jnp.arange(prompt_room + completion_room) <= index_b1)
    # How many steps ago each index of the ring was written. This step writes the index of age 0
    age_t = (slots.step - jnp.arange(completion_room)) % completion_room
    seen_prompt = jnp.arange(prompt_room) < slots.prompt_length[:, None]
    seen = jnp.concatenate([seen_prompt, age_t < slots.length[:, None]], axis=1)
    return CacheWrite(prompt_room + slots.step % completion_room, seen, ring=prompt_room)


def one_step(decoding, sampling, eos_ids, weights, tables, slots):
    """Sample one token in every slot that has not ended, and return the Slots."""
    config, active = decoding.config, ~slots.ended
    if isinstance(config, V4Config):
        hidden_bd, caches = v4.run_latest(config, weights, slots)
        logits_bv, slots = logits(config, weights, hidden_bd), slots._replace(caches=caches)
    else:
        logits_bv, slots = run_latest(decoding, weights, tables, slots)
    step_keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.length)
    tokens, logprobs, candidates = sample(step_keys, logits_bv, sampling)
    slots = slots._replace(step=slots.step + 1)
    return pinned(append(slots, tokens, logprobs, active, eos_ids, candidates))


def run_latest(decoding, weights, tables, slots):
    """Run the latest token of every slot.

    Returns:
        The logits float32[b v], and the Slots with the token in their caches.
    """
    config, active, write = decoding.config, ~slots.ended, latest_write(decoding, tables, slots)
    # RoPE needs the position of a token in its text, which is not its index in the ring
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
        slots = kept.with_experts(slots, kept.stacked(experts), active)
    # One sum for all layers: an operation for each layer would take as long as a product
    slots = slots._replace(caches=caches, rounds=jnp.stack(rounds).sum(0))
    return logits_of_stream(config, weights, x_bd), slots
