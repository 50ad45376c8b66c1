"""A reward model: the policy's decoder, and a scalar head in place of the vocabulary's."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.heads import hidden_states
from deepseek_jax.models.layers import weight
from deepseek_jax.parallel.shard import init_sharded


class RewardHead(nn.Module):
    """One number of a hidden state: float[b d] -> float32[b]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_bd):
        w = weight(self, "weight", embed=self.config.hidden_size)
        bias = weight(self, "bias", init=nn.initializers.zeros)
        return hidden_bd.astype(jnp.float32) @ w + bias


def reward_config(config):
    """The decoder's ModelConfig in a reward model: no output head of its own, no multi-token prediction."""
    return dataclasses.replace(config, tie_word_embeddings=True, num_nextn_predict_layers=0)


def init_reward_head(config, rng):
    """Random float32 parameters {"weight": [d], "bias": []} in Linen's boxes, the bias zero."""
    hidden = jnp.zeros((1, config.hidden_size), jnp.float32)
    return RewardHead(config).init(rng, hidden)["params"]


def reward_params(config, params, mesh, rng):
    """A policy's params, its SFT's as published, with a new head on the mesh: {"decoder": ..., "head": ...}.

    config: the policy's ModelConfig. The decoder's tree is reward_config's; its arrays are not copied.
    """
    decoder = {
        name: leaf
        for name, leaf in params.items()
        if name != "head" and not name.startswith("mtp_")
    }
    head = init_sharded(mesh, lambda rng: init_reward_head(config, rng), rng)
    return {"decoder": decoder, "head": head}


def predict_rewards(config, params, tokens, segment_ids):
    """The reward of each [prompt, response], read at its last token: -> (float32[b], models.Routing or None).

    config: reward_config's. params: reward_params'. tokens int32[b t], right-padded. segment_ids int32[b t],
    1 on prompt and response and 0 on padding: the last token is told by them, never by its id.
    """
    hidden_btd, routing = hidden_states(config, params["decoder"], tokens, segment_ids=segment_ids)
    last_b = (segment_ids > 0).sum(-1) - 1
    last_bd = jnp.take_along_axis(hidden_btd, last_b[:, None, None], axis=1)[:, 0]
    return RewardHead(config).apply({"params": params["head"]}, last_bd), routing
