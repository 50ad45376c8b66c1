"""What a rollout keeps of its tokens on the devices until the update uses it (arXiv:2512.02556, section 3.1).

Keep routing: the experts of each token. With 58 MoE layers of 8 experts they take 928 bytes a token.
Keep sampling mask: the candidates, the tokens that top-p and top-k left to draw a token from, over which the
update normalises its probability.
A completion's last token has no experts: the sampler never ran it. A completion that an earlier process
sampled has neither.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.ops.routing import FREE
from deepseek_jax.parallel import constrain
from deepseek_jax.parallel.decoding import own_slots
from deepseek_jax.rollout.sampling import TOO_MANY
from deepseek_jax.rollout.slots import on_rollout_mesh

DTYPE = jnp.uint16
NOTHING = {"prompt_experts": FREE, "completion_experts": FREE, "candidates": -1}


class Kept(NamedTuple):
    """What a rollout kept of its tokens, each or None: the experts in each MoE layer, or FREE, of prompts
    uint16[p s l a] and completions uint16[b t l a], and the candidates of completions, or -1, int32[b t n].
    All have more rows than there are, at the end.
    """

    prompt_experts: jax.Array | None
    completion_experts: jax.Array | None
    candidates: jax.Array | None


def begin(how, sampling, log, slots, requests):
    """(the Slots with room for what the RolloutLog says to keep, a Kept with room for all Requests)."""
    count, length = slots.tokens.shape
    # Whole chunks and slots, which split over the devices
    rows = -(-len(requests.keys) // count) * count
    prompts = len(requests.tokens), requests.prompt_room
    of_token = how.config.num_moe_layers, how.config.num_experts_per_tok
    nothing = functools.partial(_nothing, how)
    kept = Kept(None, None, None)
    if log.keeps_routing:
        slots = slots._replace(experts=nothing((count, length, *of_token), FREE, DTYPE))
        own = ((*prompts, *of_token), (rows, length, *of_token))
        of_prompts, of_completions = (nothing(shape, FREE, DTYPE) for shape in own)
        kept = kept._replace(prompt_experts=of_prompts, completion_experts=of_completions)
    if log.keeps_candidates:
        shapes = ((each, length, sampling.top_k) for each in (count, rows))
        of_slots, of_completions = (nothing(shape, -1, jnp.int32) for shape in shapes)
        slots = slots._replace(candidates=of_slots)
        kept = kept._replace(candidates=of_completions)
    return slots, kept


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
@on_rollout_mesh
def _nothing(how, shape, value, dtype):
    return own_slots(jnp.full(shape, value, dtype))


def stacked(experts: list):
    """int32[... a] of each layer, None of a dense one -> uint16[... l a]; None for a dense model."""
    experts = [each for each in experts if each is not None]
    return jnp.stack(experts, axis=-2).astype(DTYPE) if experts else None


def note(slots, experts_bla, active):
    """The Slots with the experts of the token that a step of decoding ran, the latest of each active slot."""
    at = jnp.arange(len(active)), slots.length - 1
    new = jnp.where(active[:, None, None], experts_bla, slots.experts[at])
    return slots._replace(experts=slots.experts.at[at].set(new))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
@on_rollout_mesh
def put_prompts(how, kept: Kept, experts_ptla, first):
    """Put a chunk's experts, of prefill, into the prompts' rows from `first` on: int32[]."""
    if kept.prompt_experts is None:
        return kept
    room = kept.prompt_experts.shape[1]
    own = _fitted(experts_ptla, room, FREE)
    own = jax.lax.dynamic_update_slice_in_dim(kept.prompt_experts, own, first, axis=0)
    return kept._replace(prompt_experts=own_slots(own))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
@on_rollout_mesh
def put_completions(how, kept: Kept, slots, seats, rows):
    """Put what the Slots keep of completions in seats, int32[e], into rows, int32[e]; pairs may repeat."""
    length_e1 = slots.length[seats][:, None]
    # Past these a slot still has what an earlier request left. The last token was never run
    counted = {"completion_experts": (slots.experts, length_e1 - 1)}
    counted["candidates"] = slots.candidates, length_e1
    for name, (own, count_e1) in counted.items():
        if own is not None:
            own = own[seats]
            is_own = jnp.arange(own.shape[1]) < count_e1
            is_own = is_own.reshape(*is_own.shape, *[1] * (own.ndim - 2))
            own = jnp.where(is_own, own, NOTHING[name])
            kept = kept._replace(**{name: own_slots(getattr(kept, name).at[rows].set(own))})
    return kept


@functools.partial(jax.jit, static_argnums=(3, 4))
def rows_of(kept: Kept, prompts, completions, prompt_length: int, completion_length: int):
    """{field of Kept: its rows} of what was kept, of prompts int32[p] and completions int32[b], in these
    lengths, split as a batch on the mesh of `jax.set_mesh`.
    """
    rows = {}
    for name, array in kept._asdict().items():
        if array is not None:
            of_prompts = name == "prompt_experts"
            at, length = (
                (prompts, prompt_length) if of_prompts else (completions, completion_length)
            )
            own = _fitted(array[at], length, NOTHING[name])
            rows[name] = constrain(own, ("batch", *[None] * (own.ndim - 1)))
    return rows


def _fitted(array, length, value):
    """An array [b t ...], cut or padded to t = length."""
    array = array[:, :length]
    missing = [(0, 0), (0, length - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return jnp.pad(array, missing, constant_values=value)


def check_rows(config, rows):
    """Raise BrokenTerm for an expert that the model does not have, and where more tokens could be drawn than
    there was room to keep. rows: a batch, or its part of rows_of.
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
    """(the highest expert, the lowest candidate) of a batch."""
    experts = [rows[name] for name in rows if name.endswith("_experts")]
    highest = [jnp.where(each == FREE, 0, each).max().astype(jnp.int32) for each in experts]
    lowest = rows["candidates"].min() if "candidates" in rows else jnp.int32(-1)
    return jnp.stack([jnp.int32(0), *highest]).max(), lowest
