"""Per-token data that a rollout keeps on the devices for the update: experts and candidates.

Both parts are from arXiv:2512.02556, section 3.1.

- Keep routing: the experts of each token. With 58 MoE layers of 8 experts they take 928 bytes a
  token.
- Keep sampling mask: the candidates of each token, which are the tokens that top-p and top-k left
  to draw it from. The update normalises its probability over them.

A completion's last token has no experts, because the sampler never ran it. A completion that an
earlier process sampled has neither experts nor candidates.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.models.network_config import Network
from deepseek_jax.ops.routing import FREE
from deepseek_jax.parallel.decoding import own_slots
from deepseek_jax.parallel.shard import constrain
from deepseek_jax.rollout.sampling import TOO_MANY
from deepseek_jax.rollout.slots import on_rollout_mesh

DTYPE = jnp.uint16
NOTHING = {"prompt_experts": FREE, "completion_experts": FREE, "candidates": -1}


class TokenChoices(NamedTuple):
    """Experts and candidates of a rollout's tokens; a field is None if they are not kept.

    Each array has more rows than there are prompts or completions. The extra rows are at the end.

    Attributes:
        prompt_experts: uint16[p s l a], the experts of prompts' tokens in each MoE layer; FREE for
            a token without experts.
        completion_experts: uint16[b t l a], the same for completions.
        candidates: int32[b t n], the candidates of completions' tokens; -1 in places without one.
    """

    prompt_experts: jax.Array | None
    completion_experts: jax.Array | None
    candidates: jax.Array | None


def add_places(decoding, sampling, log, slots, requests):
    """Create empty places for what a rollout is to keep.

    Args:
        log: A RolloutLog, which says what to keep.
        requests: All Requests.

    Returns:
        The Slots with places for their current tokens, and a TokenChoices with places for all requests.
    """
    num_slots, length = slots.tokens.shape
    # Whole chunks of prompts, and a multiple of the slots: both split over the devices
    rows = -(-len(requests.keys) // num_slots) * num_slots
    prompt_shape = len(requests.tokens), requests.prompt_room
    token_shape = decoding.config.num_moe_layers, decoding.config.num_experts_per_tok
    make_empty = functools.partial(_nothing, decoding)
    kept_arrays = TokenChoices(None, None, None)
    if log.keeps_routing:
        slots = slots._replace(experts=make_empty((num_slots, length, *token_shape), FREE, DTYPE))
        expert_shapes = ((*prompt_shape, *token_shape), (rows, length, *token_shape))
        prompt_experts, completion_experts = (
            make_empty(shape, FREE, DTYPE) for shape in expert_shapes
        )
        kept_arrays = kept_arrays._replace(
            prompt_experts=prompt_experts, completion_experts=completion_experts
        )
    if log.keeps_candidates:
        shapes = ((num_rows, length, sampling.top_k) for num_rows in (num_slots, rows))
        slot_candidates, completion_candidates = (
            make_empty(shape, -1, jnp.int32) for shape in shapes
        )
        slots = slots._replace(candidates=slot_candidates)
        kept_arrays = kept_arrays._replace(candidates=completion_candidates)
    return slots, kept_arrays


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
@on_rollout_mesh
def _nothing(decoding, shape, value, dtype):
    return own_slots(jnp.full(shape, value, dtype))


def stacked(experts: list):
    """Stack the experts of all MoE layers.

    Args:
        experts: int32[... a] of each layer; None for a dense layer.

    Returns:
        uint16[... l a]; None for a dense model.
    """
    experts = [layer_experts for layer_experts in experts if layer_experts is not None]
    return jnp.stack(experts, axis=-2).astype(DTYPE) if experts else None


def with_experts(slots, experts_bla, active):
    """Return the Slots with the experts of the tokens that a decoding step ran.

    These are the latest token of each active slot.

    Args:
        experts_bla: uint16[b l a].
        active: bool[b].
    """
    places = jnp.arange(len(active)), slots.length - 1
    new_experts = jnp.where(active[:, None, None], experts_bla, slots.experts[places])
    return slots._replace(experts=slots.experts.at[places].set(new_experts))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
@on_rollout_mesh
def put_prompts(decoding, choices: TokenChoices, experts_ptla, first):
    """Store the experts of a chunk of prompts.

    Args:
        choices: The TokenChoices, which is donated.
        experts_ptla: uint16[p t l a], from prefill.
        first: int32[], the row of the chunk's first prompt.
    """
    if choices.prompt_experts is None:
        return choices
    room = choices.prompt_experts.shape[1]
    chunk_experts = _fitted(experts_ptla, room, FREE)
    experts = jax.lax.dynamic_update_slice_in_dim(
        choices.prompt_experts, chunk_experts, first, axis=0
    )
    return choices._replace(prompt_experts=own_slots(experts))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
@on_rollout_mesh
def put_completions(decoding, choices: TokenChoices, slots, seats, rows):
    """Store the experts and the candidates of completions that have ended.

    Args:
        choices: The TokenChoices, which is donated.
        seats: int32[e], the slots of the completions.
        rows: int32[e], the row of each completion. Pairs of seat and row may repeat.
    """
    length_e1 = slots.length[seats][:, None]
    # After these counts a slot still has entries of an earlier request. The last token was never
    # run, so it has no experts
    counted_arrays = {"completion_experts": (slots.experts, length_e1 - 1)}
    counted_arrays["candidates"] = slots.candidates, length_e1
    for name, (entries, count_e1) in counted_arrays.items():
        if entries is not None:
            entries = entries[seats]
            is_valid = jnp.arange(entries.shape[1]) < count_e1
            is_valid = is_valid.reshape(*is_valid.shape, *[1] * (entries.ndim - 2))
            entries = jnp.where(is_valid, entries, NOTHING[name])
            choices = choices._replace(
                **{name: own_slots(getattr(choices, name).at[rows].set(entries))}
            )
    return choices


@functools.partial(jax.jit, static_argnums=(3, 4))
def rows_of(
    choices: TokenChoices,
    prompts: jax.Array,
    completions: jax.Array,
    prompt_length: int,
    completion_length: int,
) -> dict[str, jax.Array]:
    """Return {field of TokenChoices: its rows} for a batch, without fields that are None.

    The rows are cut or padded to the batch's lengths. They are split as a batch on the mesh of
    `jax.set_mesh`.

    Args:
        choices: The TokenChoices.
        prompts: int32[p], rows of prompts.
        completions: int32[b], rows of completions.
        prompt_length: Tokens of a prompt in the batch.
        completion_length: Tokens of a completion in the batch.
    """
    rows = {}
    for name, array in choices._asdict().items():
        if array is not None:
            is_of_prompts = name == "prompt_experts"
            row_numbers, length = (
                (prompts, prompt_length) if is_of_prompts else (completions, completion_length)
            )
            field_rows = _fitted(array[row_numbers], length, NOTHING[name])
            rows[name] = constrain(field_rows, ("batch", *[None] * (field_rows.ndim - 1)))
    return rows


def _fitted(array, length, value):
    """Cut an array [b t ...], or pad it with `value`, to t = length."""
    array = array[:, :length]
    padding = [(0, 0), (0, length - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return jnp.pad(array, padding, constant_values=value)


def check_rows(config: Network, rows: Mapping[str, jax.Array]):
    """Check the experts and the candidates that a batch has from a rollout.

    Args:
        rows: A batch, or the part of it from rows_of.

    Raises:
        BrokenTerm: An expert is not in the model; or more tokens could be drawn than there was room
            to keep.
    """
    highest, lowest = map(int, _extremes({name: rows[name] for name in NOTHING if name in rows}))
    if highest >= (config.n_routed_experts or 1):
        raise BrokenTerm(
            f"keep_routing: a kept choice has expert {highest}, and the model has "
            f"n_routed_experts={config.n_routed_experts}: the rollout was another model's, or its memory is "
            "damaged"
        )
    if lowest == TOO_MANY:
        raise BrokenTerm(
            "rollout.top_k: more tokens tie with the last of the top_k than there is room to keep, so that "
            "their probabilities cannot be normalised in the update; raise rollout.top_k or set it to 0"
        )


@jax.jit
def _extremes(rows):
    """Return the highest expert and the lowest candidate of a batch."""
    experts = [rows[name] for name in rows if name.endswith("_experts")]
    highest = [jnp.where(array == FREE, 0, array).max().astype(jnp.int32) for array in experts]
    lowest = rows["candidates"].min() if "candidates" in rows else jnp.int32(-1)
    return jnp.stack([jnp.int32(0), *highest]).max(), lowest
