"""A reward model: the policy's decoder with a scalar head in place of the output head."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.heads import hidden_states
from deepseek_jax.models.layers import weight
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.token_at import token_at
from deepseek_jax.parallel.shard import init_sharded, logical_names, shardings


class RewardHead(nn.Module):
    """The scalar head: hidden states float[b d] -> rewards float32[b]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_bd):
        """Return a reward float32[b] for each hidden state [b d]."""
        w = weight(self, "weight", embed=self.config.hidden_size)
        bias = weight(self, "bias", init=nn.initializers.zeros)
        return dot("bd,d->b", hidden_bd.astype(jnp.float32), w) + bias


def reward_config(config: ModelConfig):
    """Return the config of a reward model's decoder: no output head, no multi-token prediction."""
    # With tied embeddings the decoder has no parameter for a head
    return dataclasses.replace(config, tie_word_embeddings=True, num_nextn_predict_layers=0)


def init_reward_head(config: ModelConfig, rng):
    """Create a reward head's parameters: a random weight and a zero bias.

    Returns:
        float32 {"weight": [d], "bias": []} in Linen's boxes, which name their axes.
    """
    hidden = jnp.zeros((1, config.hidden_size), jnp.float32)
    return RewardHead(config).init(rng, hidden)["params"]


def reward_params(config: ModelConfig, params, mesh: Mesh, rng):
    """Make a reward model from a policy: its params, and a new head on the mesh.

    Args:
        config: The policy's ModelConfig.
        params: The policy's params; in the published method, the SFT model's. An adapter stays with
            the decoder.
        mesh: The head is created on this mesh.
        rng: The key of the head's random weight.

    Returns:
        {"decoder": ..., "head": ...}. The decoder's tree fits reward_config(config); its arrays are
        not copied.
    """
    head = init_sharded(mesh, lambda rng: init_reward_head(config, rng), rng)
    return {"decoder": decoder_params(params), "head": head}


def decoder_params(params):
    """Return the part of a policy's params that a reward model has: no head, no MTP modules."""
    if isinstance(params, AdaptedParams):
        return dataclasses.replace(params, base=decoder_params(params.base))
    # Parameters that nothing reads would still be stored, and the optimizer would decay them
    return {
        name: leaf
        for name, leaf in params.items()
        if name != "head" and not name.startswith("mtp_")
    }


def abstract_head(config: ModelConfig, mesh: Mesh):
    """Return init_reward_head's parameters as ShapeDtypeStructs on the mesh."""
    boxed = jax.eval_shape(lambda: init_reward_head(config, jax.random.key(0)))
    shapes = nn.unbox(boxed)
    places = shardings(mesh, logical_names(boxed), shapes)
    return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, places)


def predict_rewards(config: ModelConfig, params, tokens, segment_ids):
    """Compute the reward of each row [prompt, response], read at its last token.

    Args:
        config: From reward_config.
        params: From reward_params.
        tokens: int32[b t], right-padded.
        segment_ids: int32[b t], 1 on prompt and response, 0 on padding. They decide which token is
            the last; its id does not matter.

    Returns:
        float32[b], and a models.Routing or None.
    """
    hidden_btd, routing = hidden_states(config, params["decoder"], tokens, segment_ids=segment_ids)
    last_bd = token_at(hidden_btd, (segment_ids > 0).sum(-1) - 1)
    return RewardHead(config).apply({"params": params["head"]}, last_bd), routing
