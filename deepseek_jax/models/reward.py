"""A reward model: the policy's decoder with a scalar head in place of the output head."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deepseek_jax.models.adapters import Adapted
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.heads import hidden_states
from deepseek_jax.models.layers import weight
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.token_at import token_at
from deepseek_jax.parallel.shard import init_sharded, logical_names, shardings


class RewardHead(nn.Module):
    """A hidden state to one number: float[b d] -> float32[b]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_bd):
        w = weight(self, "weight", embed=self.config.hidden_size)
        bias = weight(self, "bias", init=nn.initializers.zeros)
        return dot("bd,d->b", hidden_bd.astype(jnp.float32), w) + bias


def reward_config(config: ModelConfig):
    """The ModelConfig of a reward model's decoder: no output head, no multi-token prediction."""
    # A tied head is no parameter: the decoder has only the embedding
    return dataclasses.replace(config, tie_word_embeddings=True, num_nextn_predict_layers=0)


def init_reward_head(config: ModelConfig, rng):
    """Float32 parameters {"weight": [d], "bias": []} in Linen's boxes: random weight, zero bias."""
    hidden = jnp.zeros((1, config.hidden_size), jnp.float32)
    return RewardHead(config).init(rng, hidden)["params"]


def reward_params(config: ModelConfig, params, mesh: Mesh, rng):
    """A policy's params with a new head on the mesh: {"decoder": ..., "head": ...}.

    config: the policy's ModelConfig. The published policy is the SFT model. The decoder's tree fits
    reward_config(config); its arrays are not copied. An adapter stays with the decoder.
    """
    head = init_sharded(mesh, lambda rng: init_reward_head(config, rng), rng)
    return {"decoder": decoder_params(params), "head": head}


def decoder_params(params):
    """The part of a policy's params that its reward model has."""
    if isinstance(params, Adapted):
        return dataclasses.replace(params, base=decoder_params(params.base))
    # What nothing reads would still be stored, and decayed by the optimizer
    return {
        name: leaf
        for name, leaf in params.items()
        if name != "head" and not name.startswith("mtp_")
    }


def abstract_head(config: ModelConfig, mesh: Mesh):
    """init_reward_head's parameters as ShapeDtypeStructs on the mesh."""
    boxed = jax.eval_shape(lambda: init_reward_head(config, jax.random.key(0)))
    shapes = nn.unbox(boxed)
    places = shardings(mesh, logical_names(boxed), shapes)
    return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, places)


def predict_rewards(config: ModelConfig, params, tokens, segment_ids):
    """The reward of each [prompt, response], read at its last token: -> (float32[b], models.Routing or None).

    config: from reward_config. params: from reward_params. tokens: int32[b t], right-padded. segment_ids:
    int32[b t], 1 on prompt and response and 0 on padding. They decide which token is the last, never its id.
    """
    hidden_btd, routing = hidden_states(config, params["decoder"], tokens, segment_ids=segment_ids)
    last_bd = token_at(hidden_btd, (segment_ids > 0).sum(-1) - 1)
    return RewardHead(config).apply({"params": params["head"]}, last_bd), routing
