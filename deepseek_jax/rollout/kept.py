"""Keep routing: the experts that a rollout chose for its tokens stay on the devices, and the update uses them
again (arXiv:2512.02556, section 3.1). With 58 MoE layers of 8 experts a token they take 928 bytes a token.

A completion's last token has none: the sampler never ran it. Nor has a completion that an earlier process
sampled. The update chooses their experts itself.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.parallel.decoding import own_slots
from deepseek_jax.rollout.slots import on_rollout_mesh

DTYPE = jnp.uint16
# In place of the experts of a token that has none
FREE = np.iinfo(DTYPE).max


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
