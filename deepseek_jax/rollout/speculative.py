"""Speculative decoding: multi-token prediction drafts a token, and the model verifies it.

In the same step the model draws one more token (arXiv:2412.19437, sections 2.2 and 5.4.3). The
distribution of tokens is the same as without drafts (arXiv:2211.17192, arXiv:2302.01318).

Each sequence of a batch gains one token or two in a step. The entries that a rejected draft leaves
in the caches are overwritten by the next step, before any query sees them.

Letter z, of size 2: the last token and the draft, or what the model computes from the two.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.models.adapters import whole
from deepseek_jax.models.cache import PositionWrite
from deepseek_jax.models.decoder import DecoderLayer
from deepseek_jax.models.layers import rms_norm
from deepseek_jax.models.mtp import MultiTokenPrediction
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.parallel.shard import constrain
from deepseek_jax.rollout import steps
from deepseek_jax.rollout.sampling import distribution, draw, verify
from deepseek_jax.rollout.slots import Drafting, append, pinned, rooms
from deepseek_jax.rollout.weights import axis_names, cast, layer_weights


def check(config: Network):
    """Raise ValueError for a model that cannot draft."""
    if isinstance(config, V4Config):
        raise ValueError(
            "speculative=True: the caches of DeepSeek-V4 cannot take back the tokens of a rejected "
            "draft; set speculative to False"
        )
    if not (config.is_mla and config.num_nextn_predict_layers):
        raise ValueError(
            f"speculative=True drafts with a multi-token prediction module, and a model with "
            f"model.model_type={config.model_type!r} and "
            f"model.num_nextn_predict_layers={config.num_nextn_predict_layers} has none that can; "
            "it takes deepseek_v3, v32 or v2 with at least 1. Decode with speculative=False"
        )


def module_weights(config, params):
    """Return the parameters of the first multi-token prediction module in the form for decoding."""
    module, names = whole(params)["mtp_0"], axis_names(config)["mtp_0"]
    block = layer_weights(config, module["block"], names["block"])
    return jax.tree.map(constrain, cast(config, module), names) | {"block": block}


def no_drafts(config, count):
    """Create the Drafting of empty Slots."""
    zeros_b = jnp.zeros(count, jnp.int32)
    return Drafting(
        hidden=jnp.zeros((count, 2, config.hidden_size), config.dtype),
        next_tokens=jnp.zeros((count, 2), jnp.int32),
        fresh=zeros_b,
        drafted=zeros_b,
        accepted=zeros_b,
    )


def _apply_module(method, config, weights, hidden_btd, next_tokens, *args):
    """Call a method of the multi-token prediction module on pairs.

    Args:
        weights: From decode.decoding_weights.
        hidden_btd: The hidden states of the pairs.
        next_tokens: int32[b t], the tokens of the pairs.
    """
    module = MultiTokenPrediction(config, DecoderLayer(config, is_moe=True))
    embedding_btd = steps.embed(weights, next_tokens)
    arguments = embedding_btd, hidden_btd, *args
    return module.apply({"params": weights["mtp"]}, *arguments, method=method)


def module_cache(config, weights, tables, tokens, lengths, hidden_ptd):
    """Compute the module's cache of prompts, see steps.run_prompts.

    The last token's pair has to wait for the completion's first token. The entry at its index, and
    the entries after it, will be overwritten.

    Args:
        weights: From decode.decoding_weights.
        tables: From decode.rotations.
        tokens: int32[p t], right-padded.
        lengths: int32[p].
        hidden_ptd: The hidden states of the prompts, after the final norm.
    """
    t = tokens.shape[1]
    return _apply_module(
        "prefill",
        config,
        weights,
        hidden_ptd,
        # Each hidden state is paired with the next token (arXiv:2412.19437, section 2.2)
        jnp.pad(tokens[:, 1:], ((0, 0), (0, 1))),
        [table[:t] for table in tables],
        (jnp.arange(t) < lengths[:, None]).astype(jnp.int32),
    )


def begun(slots, seating: steps.Seating, last_hidden):
    """Return the Drafting after requests were seated.

    The slot of each new request has the first pair to draft from.

    Args:
        slots: The Slots, with the requests seated.
        seating: The requests that were seated.
        last_hidden: [p d], the hidden state of each prompt's last token.
    """
    seats, old = seating.seats, slots.drafting
    hidden_b1d, token_b1 = last_hidden[seating.rows][:, None], slots.last_token[:, None]
    return Drafting(
        # One pair fills both places; fresh=1 makes the second void
        hidden=jnp.where(seats[:, None, None], hidden_b1d, old.hidden),
        next_tokens=jnp.where(seats[:, None], token_b1, old.next_tokens),
        fresh=jnp.where(seats, 1, old.fresh),
        drafted=jnp.where(seats, 0, old.drafted),
        accepted=jnp.where(seats, 0, old.accepted),
    )


def _two_from(tables, start, room):
    """Return the rotations of positions start and start + 1, and the PositionWrite there.

    Args:
        tables: From decode.rotations.
        start: int32[b].
        room: The number of positions in a cache.
    """
    index_bz = start[:, None] + jnp.arange(2)
    seen_bzs = jnp.arange(room) <= index_bz[..., None]
    return steps.rotations_at(tables, index_bz), PositionWrite(index_bz, seen_bzs)


def _draft(config, weights, drafting, cache, rope, write):
    """Run the module on both pairs.

    Returns:
        float32[b v], the logits after the last pair that is not void; and the module's cache.
    """
    pairs = drafting.hidden, drafting.next_tokens
    hidden_bzd, cache = _apply_module("extend", config, weights, *pairs, rope, cache, write)
    last_bd = jnp.take_along_axis(hidden_bzd, (drafting.fresh - 1)[:, None, None], axis=1)[:, 0]
    # The module has already applied its own norm to this hidden state
    return steps.logits(config, weights, last_bd), cache


def _verified(distributions, uniform, draft, draft_probs):
    """Verify the drafts.

    Args:
        distributions: Probabilities and log-probabilities float32[b*z v], at both places of each
            sequence.
        uniform: float32[b 2] in [0, 1).
        draft: int32[b].
        draft_probs: float32[b v].

    Returns:
        accepted bool[b]; the two next tokens int32[b z]; and their log-probabilities float32[b z].
    """
    probs, logprobs = distributions
    b, v = draft_probs.shape
    accepted_b, token_b = verify(uniform, draft, draft_probs, probs.reshape(b, 2, v))
    # token_b is either the second new token, or the token that replaces a rejected draft: then
    # place z=1 is void
    next_bz = jnp.stack([jnp.where(accepted_b, draft, token_b), token_b], axis=1)
    logprobs_bz = jnp.take_along_axis(logprobs, next_bz.reshape(-1, 1), axis=1).reshape(b, 2)
    return accepted_b, next_bz, logprobs_bz


def drafted_step(decoding, sampling, eos_ids, weights, tables, slots):
    """Sample one or two tokens in every slot that has not ended, in place of steps.one_step."""
    config, room = decoding.config, sum(rooms(tables, slots))
    draft_cache = slots.caches[-1]
    drafting, active_b = slots.drafting, ~slots.ended
    # Draws depend only on the request and its number of tokens, so other slots never change them
    keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.length)
    uniform_b3 = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
    # The position of last_token, which is in no cache yet
    position_b = slots.prompt_length + slots.length - 1

    # The last valid pair ends in last_token, so its position is one before; a void pair follows it
    at_pairs = _two_from(tables, position_b - drafting.fresh, room)
    logits_bv, draft_cache = _draft(config, weights, drafting, draft_cache, *at_pairs)
    draft_probs_bv, _ = distribution(logits_bv, sampling)
    draft_b = draw(uniform_b3[:, 0], draft_probs_bv)

    tokens_bz = jnp.stack([slots.last_token, draft_b], axis=1)
    _, at_tokens = _two_from(tables, position_b, room)
    x_bzd, caches, _ = steps.run_more(config, weights, tables, slots, tokens_bz, at_tokens)
    hidden_bzd = rms_norm(x_bzd, weights["final_norm"], config.rms_norm_eps)
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
