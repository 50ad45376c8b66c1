"""Keep routing: the experts that a rollout chose for its tokens stay on the devices, and the update uses them
again (arXiv:2512.02556, section 3.1). With 58 MoE layers of 8 experts a token they take 928 bytes a token.

A completion's last token has none: the sampler never ran it. Nor has a completion that an earlier process
sampled. The update chooses their experts itself.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.ops.routing import FREE
from deepseek_jax.parallel import constrain
from deepseek_jax.parallel.decoding import own_slots
from deepseek_jax.rollout.slots import on_rollout_mesh

DTYPE = jnp.uint16


class Kept(NamedTuple):
    """Experts of a rollout's tokens in each MoE layer, or FREE: prompts uint16[p s l a], and completions
    uint16[b t l a], both with more rows than there are, at the end.
    """

    prompts: jax.Array
    completions: jax.Array


def stacked(experts: list):
    """int32[... a] of each layer, None of a dense one -> uint16[... l a]; None for a dense model."""
    experts = [each for each in experts if each is not None]
    return jnp.stack(experts, axis=-2).astype(DTYPE) if experts else None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
@on_rollout_mesh
def nothing(config, rows, length):
    """uint16[b t l a] of FREE. rows: rounded up to a number that splits over the devices."""
    shape = rows, length, config.num_moe_layers, config.num_experts_per_tok
    return own_slots(jnp.full(shape, FREE, DTYPE))


def note(slots, experts_bla, active):
    """The Slots with the experts of the token that a step of decoding ran, the latest of each active slot."""
    at = jnp.arange(len(active)), slots.length - 1
    new = jnp.where(active[:, None, None], experts_bla, slots.experts[at])
    return slots._replace(experts=slots.experts.at[at].set(new))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
@on_rollout_mesh
def put_prompts(config, kept_psla, experts_ptla, first):
    """Put a chunk's experts, of prefill, into the prompts' rows from `first` on: int32[]."""
    room = kept_psla.shape[1]
    own = experts_ptla[:, :room]
    own = jnp.pad(own, ((0, 0), (0, room - own.shape[1]), (0, 0), (0, 0)), constant_values=FREE)
    return own_slots(jax.lax.dynamic_update_slice_in_dim(kept_psla, own, first, axis=0))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
@on_rollout_mesh
def put_completions(config, kept_btla, slots, seats, rows):
    """Put the experts of the completions in seats, int32[e], into rows, int32[e]; pairs may repeat."""
    experts, length = slots.experts[seats], slots.length[seats]
    # Past these a slot still has the experts of an earlier request
    was_run_et = jnp.arange(experts.shape[1]) < length[:, None] - 1
    experts = jnp.where(was_run_et[..., None, None], experts, FREE)
    return own_slots(kept_btla.at[rows].set(experts))


@functools.partial(jax.jit, static_argnums=(3, 4))
def rows_of(kept: Kept, prompts, completions, prompt_length: int, completion_length: int):
    """(uint16[p s l a], uint16[b t l a]) of these rows, int32[p] and int32[b], in these lengths, split as a
    batch on the mesh of `jax.set_mesh`.
    """

    def fitted(experts, rows, length):
        own = experts[rows, :length]
        missing = length - own.shape[1]
        own = jnp.pad(own, ((0, 0), (0, missing), (0, 0), (0, 0)), constant_values=FREE)
        return constrain(own, ("batch", None, None, None))

    return (
        fitted(kept.prompts, prompts, prompt_length),
        fitted(kept.completions, completions, completion_length),
    )


def check_experts(config, experts):
    """Raise BrokenTerm for an expert that the model does not have. experts: of rows_of."""
    highest = int(_highest(experts))
    if highest >= config.n_routed_experts:
        raise BrokenTerm(
            f"keep_routing: a kept choice has expert {highest}, and the model has "
            f"n_routed_experts={config.n_routed_experts}: the rollout was another model's, or its memory is "
            "damaged"
        )


@jax.jit
def _highest(experts):
    # FREE is no expert
    return jnp.stack([jnp.where(each == FREE, 0, each).max() for each in experts]).max()
