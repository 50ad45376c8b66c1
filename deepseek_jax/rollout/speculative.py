"""Speculative decoding: multi-token prediction drafts a token, the model verifies it and draws one more
(arXiv:2412.19437, sections 2.2 and 5.4.3). Tokens are distributed as without drafts (arXiv:2211.17192,
arXiv:2302.01318).

Sequences of a batch gain one token a step, or two, so here a token's cache index is its position. What a
rejected draft has left in the caches is overwritten by the next step, before any query sees it.
Letter z, of size 2: the last token and the draft, or what the model computes from the two.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models.adapters import whole
from deepseek_jax.models.cache import PositionWrite, empty_cache
from deepseek_jax.models.decoder import DecoderLayer
from deepseek_jax.models.layers import rms_norm
from deepseek_jax.models.mtp import MultiTokenPrediction
from deepseek_jax.parallel import constrain
from deepseek_jax.parallel.decoding import own_rows
from deepseek_jax.rollout import steps
from deepseek_jax.rollout.sampling import distribution, draw, verify
from deepseek_jax.rollout.slots import append, on_rollout_mesh, pinned, repeat, rooms
from deepseek_jax.rollout.slots import lengthen as grow
from deepseek_jax.rollout.weights import axis_names, cast, layer_weights, layers_of


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


def check(config):
    """Raise ValueError for a model that cannot draft."""
    if not (config.is_mla and config.num_nextn_predict_layers):
        raise ValueError(
            f"speculative=True drafts with a multi-token prediction module, and a model with "
            f"model.model_type={config.model_type!r} and "
            f"model.num_nextn_predict_layers={config.num_nextn_predict_layers} has none that can; "
            "it takes deepseek_v3, v32 or v2 with at least 1. Decode with speculative=False"
        )


@functools.partial(jax.jit, static_argnums=0)
@on_rollout_mesh
def decoding_weights(config, params):
    """weights.decoding_weights, and those of the first multi-token prediction module."""
    module, names = whole(params)["mtp_0"], axis_names(config)["mtp_0"]
    block = layer_weights(config, module["block"], names["block"])
    module = jax.tree.map(constrain, cast(config, module), names) | {"block": block}
    return steps.decoding_weights(config, params) | {"mtp": module}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
@on_rollout_mesh
def empty_slots(config, count, prompt_room, completion_room, max_completion_length):
    """slots.empty_slots, with one more cache: the module's."""
    slots = steps.empty_slots(config, count, prompt_room, completion_room, max_completion_length)
    cache = empty_cache(config, count, prompt_room + completion_room, config.dtype)
    zeros_b = jnp.zeros(count, jnp.int32)
    drafting = Drafting(
        hidden=jnp.zeros((count, 2, config.hidden_size), config.dtype),
        next_tokens=jnp.zeros((count, 2), jnp.int32),
        fresh=zeros_b,
        drafted=zeros_b,
        accepted=zeros_b,
    )
    return pinned(slots._replace(caches=[*slots.caches, cache], drafting=drafting))


def _apply_module(method, config, weights, hidden_btd, next_tokens, *args):
    """A method of the multi-token prediction module, on pairs."""
    module = MultiTokenPrediction(config, DecoderLayer(config, is_moe=True))
    embedding_btd = steps.embed(weights, next_tokens)
    arguments = embedding_btd, hidden_btd, *args
    return module.apply({"params": weights["mtp"]}, *arguments, method=method)


@functools.partial(jax.jit, static_argnums=0)
@on_rollout_mesh
def prefill(config, weights, tables, tokens, lengths):
    """steps.prefill -> (caches, the module's too, logits float32[p v], hidden [p d] of the last token, None).

    The last token's pair has to wait for the completion's first token: what stands at its index, and
    after it, is overwritten.
    """
    caches, x_ptd, _ = steps.run_prompts(config, weights, tables, tokens, lengths)
    hidden_ptd = rms_norm(x_ptd, weights["final_norm"], config.rms_norm_eps)
    t = tokens.shape[1]
    cache = _apply_module(
        "prefill",
        config,
        weights,
        hidden_ptd,
        # Each hidden state is paired with the next token (arXiv:2412.19437, section 2.2)
        jnp.pad(tokens[:, 1:], ((0, 0), (0, 1))),
        [table[:t] for table in tables],
        (jnp.arange(t) < lengths[:, None]).astype(jnp.int32),
    )
    last_pd = jnp.take_along_axis(hidden_ptd, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return [*caches, cache], steps.logits(config, weights, last_pd), last_pd, None


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
@on_rollout_mesh
def seat(config, sampling, eos_ids, slots, seating: steps.Seating, prefilled):
    """steps.seat, and the first pair to draft from. prefilled: (caches, logits, hidden) of `prefill`."""
    caches, logits, last_hidden = prefilled
    slots = steps.seat(config, sampling, eos_ids, slots, seating, (caches, logits))
    seats = seating.seats
    old = slots.drafting
    hidden_b1d, token_b1 = last_hidden[seating.rows][:, None], slots.last_token[:, None]
    drafting = Drafting(
        # One pair fills both places; fresh=1 makes the second void
        hidden=jnp.where(seats[:, None, None], hidden_b1d, old.hidden),
        next_tokens=jnp.where(seats[:, None], token_b1, old.next_tokens),
        fresh=jnp.where(seats, 1, old.fresh),
        drafted=jnp.where(seats, 0, old.drafted),
        accepted=jnp.where(seats, 0, old.accepted),
    )
    return pinned(slots._replace(drafting=drafting))


def _two_from(tables, start, room):
    """The rotations of positions start: int32[b] and start + 1, and the PositionWrite there."""
    index_bz = start[:, None] + jnp.arange(2)
    # clip: a full slot looks one past the tables, where jnp.take would by default return NaN
    rope = [jnp.take(table, index_bz, axis=0, mode="clip") for table in tables]
    return rope, PositionWrite(index_bz, jnp.arange(room) <= index_bz[..., None])


def _draft(config, weights, drafting, cache, rope, write):
    """Run the module on both pairs -> (logits float32[b v] after the last that is not void, cache)."""
    pairs = drafting.hidden, drafting.next_tokens
    hidden_bzd, cache = _apply_module("extend", config, weights, *pairs, rope, cache, write)
    last_bd = jnp.take_along_axis(hidden_bzd, (drafting.fresh - 1)[:, None, None], axis=1)[:, 0]
    # The module has normed this hidden state already, with a norm of its own
    return steps.logits(config, weights, last_bd), cache


def _run(config, weights, tokens, caches, rope, write):
    """Run the model on two tokens a sequence: int32[b z] -> (hidden [b z d], caches)."""
    x_bzd = steps.embed(weights, tokens)
    written = []
    for index, (layer, cache) in enumerate(zip(layers_of(weights, x_bzd), caches, strict=True)):
        x_bzd, cache, _ = steps.layer_at(config, index).apply(
            {"params": layer}, x_bzd, rope, cache, write, method="extend"
        )
        x_bzd = own_rows(x_bzd)
        written.append(cache)
    return rms_norm(x_bzd, weights["final_norm"], config.rms_norm_eps), written


def _verified(distributions, uniform, draft, draft_probs):
    """Verify the drafts: -> (accepted bool[b], the two next tokens int32[b z], their logprobs float32[b z]).

    distributions: probabilities and log-probabilities float32[b*z v] of the places of both.
    """
    probs, logprobs = distributions
    b, v = draft_probs.shape
    accepted_b, token_b = verify(uniform, draft, draft_probs, probs.reshape(b, 2, v))
    # token_b is either the second new token or the replacement of a rejected draft: then z = 1 is void
    next_bz = jnp.stack([jnp.where(accepted_b, draft, token_b), token_b], axis=1)
    logprobs_bz = jnp.take_along_axis(logprobs, next_bz.reshape(-1, 1), axis=1).reshape(b, 2)
    return accepted_b, next_bz, logprobs_bz


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
@on_rollout_mesh
def decode(config, sampling, eos_ids, weights, tables, slots, ends):
    """steps.decode, with one or two tokens a step."""
    room = slots.caches[0]["latents"].shape[1]
    _, completion_room = rooms(tables, slots)

    def body(slots):
        *caches, draft_cache = slots.caches
        drafting, active_b = slots.drafting, ~slots.ended
        # Draws depend on the request and its number of tokens alone, so other slots never change them
        keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.length)
        uniform_b3 = jax.vmap(lambda key: jax.random.uniform(key, 3))(keys)
        # The position of last_token, which is in no cache yet
        position_b = slots.prompt_length + slots.length - 1

        # The last valid pair ends in last_token and stands one position before it; a void pair comes after
        at_pairs = _two_from(tables, position_b - drafting.fresh, room)
        logits_bv, draft_cache = _draft(config, weights, drafting, draft_cache, *at_pairs)
        draft_probs_bv, _ = distribution(logits_bv, sampling)
        draft_b = draw(uniform_b3[:, 0], draft_probs_bv)

        tokens_bz = jnp.stack([slots.last_token, draft_b], axis=1)
        at_tokens = _two_from(tables, position_b, room)
        hidden_bzd, caches = _run(config, weights, tokens_bz, caches, *at_tokens)
        logits = steps.logits(config, weights, hidden_bzd.reshape(-1, config.hidden_size))
        accepted_b, next_bz, logprobs_bz = _verified(
            distribution(logits, sampling), uniform_b3[:, 1:], draft_b, draft_probs_bv
        )

        slots = slots._replace(caches=[*caches, draft_cache], step=slots.step + 1)
        for z, gained_b in enumerate((active_b, active_b & accepted_b)):
            # The first of two tokens may be an end token: then the second does not count
            gained_b &= ~slots.ended
            slots = append(slots, next_bz[:, z], logprobs_bz[:, z], gained_b, eos_ids)
        drafting = Drafting(
            hidden=hidden_bzd,
            next_tokens=next_bz,
            fresh=1 + accepted_b,
            drafted=drafting.drafted + active_b,
            accepted=drafting.accepted + (active_b & accepted_b),
        )
        return pinned(slots._replace(drafting=drafting))

    # A step writes the last token and the draft, one place further than steps.decode; prompts fill their room
    return repeat(body, slots, ends, completion_room - 1)


PARTS = steps.Parts(decoding_weights, empty_slots, prefill, seat, decode, grow)


def parts(config):
    """PARTS. Raises ValueError for a model that cannot draft."""
    check(config)
    return PARTS
