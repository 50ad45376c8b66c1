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

from deepseek_jax.models import init_params
from deepseek_jax.models.cache import CacheWrite, empty_cache
from deepseek_jax.models.decoder import DecoderLayer
from deepseek_jax.models.heads import head_weight
from deepseek_jax.models.layers import LINEAR, position_tables, rms_norm
from deepseek_jax.ops.decoding import prepare
from deepseek_jax.ops.dot import dot
from deepseek_jax.parallel import constrain, logical_names
from deepseek_jax.parallel.decoding import decoding, own_rows, own_slots
from deepseek_jax.rollout.sampling import sample


class Parts(NamedTuple):
    """The functions of one way of decoding, in the order of use: this module's, or speculative's."""

    decoding_weights: Callable
    empty_slots: Callable
    prefill: Callable
    seat: Callable
    decode: Callable
    grow: Callable


class Slots(NamedTuple):
    """The state of decoding, b slots wide. A slot that has ended, or never began, has ended=True."""

    caches: list  # one a layer, as models.cache.empty_cache
    step: jax.Array  # int32[]
    keys: jax.Array  # typed[b], one stream a request
    prompt_length: jax.Array  # int32[b]
    length: jax.Array  # int32[b], tokens sampled so far
    last_token: jax.Array  # int32[b]
    ended: jax.Array  # bool[b]
    stopped: jax.Array  # bool[b], by an end token and not for want of room
    tokens: jax.Array  # int32[b t]
    logprobs: jax.Array  # float32[b t]
    drafting: tuple | None = None  # speculative.Drafting, where tokens are drafted


def on_rollout_mesh(function):
    """Trace a function of (config, ...) with the table of axes of parallel.decoding."""

    @functools.wraps(function)
    def placed(config, *arguments):
        with decoding(config.num_attention_heads):
            return function(config, *arguments)

    return placed


def cast(config, params):
    """Cast params to the compute dtype, except for router weights and their bias."""

    def cast_leaf(path, leaf):
        keep = any("router" in str(part) for part in path)
        return leaf if keep else leaf.astype(config.dtype)

    return jax.tree_util.tree_map_with_path(cast_leaf, params)


@functools.partial(jax.jit, static_argnums=0)
@on_rollout_mesh
def decoding_weights(config, params):
    """Unstack the layers and cast to the compute dtype, once a rollout: decoding runs fastest unrolled.

    Router weights and their bias stay float32, as routing does. The weights of Linear layers are prepared for
    products of few rows.
    """
    names = axis_names(config)
    layers = []
    for stack, count in (
        ("dense_layers", config.num_dense_layers),
        ("moe_layers", config.num_moe_layers),
    ):
        # Without the axis of layers
        own = jax.tree.map(lambda axes: axes[1:], names.get(stack), is_leaf=_is_axes)
        for i in range(count):
            layer = cast(config, jax.tree.map(lambda leaf, i=i: leaf[i], params[stack]))
            # Cast and unstacked first: weights that change their place travel a layer at a time, in few bytes
            layers.append(jax.tree.map(constrain, layer, own))
    # Under config.fp8, models.layers multiplies by another op, which takes weights as they are
    if not config.fp8:
        layers = jax.tree.map_with_path(_prepared, layers)
    vocabulary = {name: params[name] for name in ("embedding", "head") if name in params}
    vocabulary = {
        name: constrain(cast(config, leaf), names[name]) for name, leaf in vocabulary.items()
    }
    return vocabulary | {
        "final_norm": cast(config, params["final_norm"]["scale"]),
        "layers": layers,
    }


def axis_names(config):
    """The logical axes of every parameter: a tree of tuples like the params."""
    return logical_names(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


def _is_axes(x):
    return isinstance(x, tuple)


def _prepared(path, leaf):
    """A weight that models.layers.linear multiplies by in ops.decoding.prepare's form, any other as it is."""
    name = path[-1].key
    # Experts' weights have the same names and one more axis
    is_of_experts = leaf.ndim == {"gate_up": 4, "down": 3}.get(name)
    return prepare(leaf, LINEAR[name]) if name in LINEAR and not is_of_experts else leaf


def layer_at(config, index):
    """The module of layer `index`, without its weights."""
    return DecoderLayer(config, is_moe=index >= config.num_dense_layers)


def embed(weights, tokens):
    """The embedding's rows of tokens: int32[...] -> [... d]."""
    return own_rows(jnp.take(weights["embedding"], tokens, axis=0))


def logits(config, weights, hidden_md):
    """Hidden states after the final norm [m d] -> float32[m v]."""
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
    float32[p v]). tables: of `rotations`.
    """
    caches, x_ptd = run_prompts(config, weights, tables, tokens, lengths)
    # Only the last token's logits are needed: those of all would be [p t v]
    last_pd = jnp.take_along_axis(x_ptd, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return caches, _logits_of_stream(config, weights, last_pd)


def run_prompts(config, weights, tables, tokens, lengths):
    """`prefill` up to the final norm -> (caches a layer, x [p t d])."""
    t = tokens.shape[1]
    segment_ids = (jnp.arange(t) < lengths[:, None]).astype(jnp.int32)
    rope = [table[:t] for table in tables]
    x_ptd = embed(weights, tokens)
    caches = []
    for index, layer in enumerate(weights["layers"]):
        x_ptd, _, remembered = layer_at(config, index).apply(
            {"params": layer}, x_ptd, rope, segment_ids
        )
        x_ptd = own_rows(x_ptd)
        caches.append(remembered)
    return caches, x_ptd


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
@on_rollout_mesh
def empty_slots(config, count, prompt_room, completion_room, max_completion_length):
    """Slots of which all have ended, for completions of up to max_completion_length tokens. Their caches have
    room for prompts and completions of these lengths; `grow` gives more.
    """
    zeros = jnp.zeros(count, jnp.int32)
    slots = Slots(
        caches=[
            empty_cache(config, count, prompt_room + completion_room, config.dtype)
            for _ in range(config.num_hidden_layers)
        ],
        step=jnp.int32(0),
        keys=jax.random.split(jax.random.key(0), count),
        prompt_length=zeros,
        length=zeros,
        last_token=zeros,
        ended=jnp.ones(count, bool),
        stopped=jnp.zeros(count, bool),
        tokens=jnp.zeros((count, max_completion_length), jnp.int32),
        logprobs=jnp.zeros((count, max_completion_length), jnp.float32),
    )
    return pinned(slots)


def pinned(slots):
    """The Slots, whose arrays are pinned to the devices of their slots; caches are where they are written."""
    apart = slots._replace(caches=None, step=None)
    return jax.tree.map(own_slots, apart)._replace(caches=slots.caches, step=slots.step)


def append(slots, tokens, logprobs, seats, eos_ids):
    """Append a sampled token to each slot of seats: bool[b]."""
    at = jnp.arange(len(tokens)), slots.length
    length = slots.length + seats
    # -1 is no token: without eos_ids nothing stops a completion but its room
    stops = jnp.isin(tokens, jnp.array(eos_ids or (-1,)))
    is_full = length == slots.tokens.shape[1]
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


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
@on_rollout_mesh
def seat(
    config, sampling, eos_ids, slots, seats, prompts, prompt_caches, prompt_logits, lengths, keys
):
    """Give the slots in seats: bool[b] a new request, and sample its first token from the prompt's logits.

    prompts: int32[b], which of the prefilled prompts; lengths: int32[b] of those; keys: typed[b].
    """

    def copy_prompt(cache, prompt_cache):
        room = prompt_cache.shape[1]
        new = own_slots(jnp.take(_apart(prompt_cache, len(prompt_logits)), prompts, axis=0))
        old = _apart(cache[:, :room], len(seats))
        new = jnp.where(seats[:, None, None, None], new, old).reshape(-1, room, cache.shape[-1])
        return own_slots(jax.lax.dynamic_update_slice_in_dim(cache, new, 0, axis=1))

    slots = slots._replace(
        # The ring is not cleared: decode's mask hides what an earlier request left there
        caches=jax.tree.map(copy_prompt, slots.caches, prompt_caches),
        keys=jnp.where(seats, keys, slots.keys),
        prompt_length=jnp.where(seats, lengths, slots.prompt_length),
        length=jnp.where(seats, 0, slots.length),
    )
    step_keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.length)
    tokens, logprobs = sample(step_keys, own_slots(prompt_logits[prompts]), sampling)
    return pinned(append(slots, tokens, logprobs, seats, eos_ids))


def _apart(cache, count):
    """Caches of count sequences, [z s x] or, of no heads, [b s x] -> [b k s x]."""
    return cache.reshape(count, -1, *cache.shape[1:])


# Slots are donated, so that the loop writes into their caches in place
@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
@on_rollout_mesh
def decode(config, sampling, eos_ids, weights, tables, slots, ends):
    """Sample token after token until every slot has ended, `ends` more have: int32[], or a cache is full."""
    prompt_room, completion_room = rooms(tables, slots)

    def body(slots):
        active = ~slots.ended
        # How many steps ago each index of the ring was written: this step writes the one of age 0
        age_t = (slots.step - jnp.arange(completion_room)) % completion_room
        seen_prompt = jnp.arange(prompt_room) < slots.prompt_length[:, None]
        seen = jnp.concatenate([seen_prompt, age_t < slots.length[:, None]], axis=1)
        write = CacheWrite(prompt_room + slots.step % completion_room, seen)
        # RoPE needs a token's position in its text, which is not its index in the ring
        positions = slots.prompt_length + slots.length - 1
        rope = [jnp.take(table, positions[:, None], axis=0, mode="clip") for table in tables]
        x_bd = embed(weights, slots.last_token)
        caches = []
        for index, layer in enumerate(weights["layers"]):
            x_bd, cache = layer_at(config, index).apply(
                {"params": layer}, x_bd, rope, slots.caches[index], write, method="decode"
            )
            x_bd = own_rows(x_bd)
            caches.append(cache)
        step_keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.length)
        tokens, logprobs = sample(step_keys, _logits_of_stream(config, weights, x_bd), sampling)
        slots = slots._replace(caches=caches, step=slots.step + 1)
        return pinned(append(slots, tokens, logprobs, active, eos_ids))

    # The last token sampled is not in the cache yet: a step needs room for `length` tokens
    return repeat(body, slots, ends, completion_room)


def repeat(body, slots, ends, most):
    """Run body: Slots -> Slots until every slot has ended, `ends` more have: int32[], or one that has not
    ended has more than `most` tokens.
    """
    # Free slots have ended already: only slots that end in this loop count
    ended_before = slots.ended

    def keep_on(slots):
        ended = (slots.ended & ~ended_before).sum()
        is_full = jnp.any(~slots.ended & (slots.length > most))
        return jnp.any(~slots.ended) & (ended < ends) & ~is_full

    return jax.lax.while_loop(keep_on, body, slots)


def rooms(tables, slots):
    """(prompt room, completion room) of the caches. tables: of `rotations`, for the longest text."""
    prompt_room = len(tables[0]) - slots.tokens.shape[1]
    return prompt_room, jax.tree.leaves(slots.caches)[0].shape[1] - prompt_room


@functools.partial(jax.jit, static_argnums=(0, 3))
@on_rollout_mesh
def grow(config, tables, slots, completion_room):
    """The Slots with caches of a larger completion room. Every token gets the index that it would have if the
    room had always been so large.
    """
    prompt_room, old = rooms(tables, slots)
    index_t = jnp.arange(completion_room)
    # The latest step before this one that writes each index of the larger ring
    step_t = slots.step - 1 - (slots.step - 1 - index_t) % completion_room
    # An earlier one is overwritten in the smaller ring, and no slot has so many tokens
    is_there = step_t >= slots.step - old

    def larger(cache):
        prompt, ring = cache[:, :prompt_room], cache[:, prompt_room:]
        ring = jnp.where(is_there[:, None], jnp.take(ring, step_t % old, axis=1), 0)
        return own_slots(jnp.concatenate([prompt, ring.astype(cache.dtype)], axis=1))

    return slots._replace(caches=jax.tree.map(larger, slots.caches))


PARTS = Parts(decoding_weights, empty_slots, prefill, seat, decode, grow)
