"""Multi-token prediction: one more block that foresees the token after next (arXiv:2412.19437,
section 2.2).
"""

import flax.linen as nn
import jax.numpy as jnp

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import RMSNorm, weight
from deepseek_jax.ops.dot import dot


class MultiTokenPrediction(nn.Module):
    """Eqs. 21-22, with the released checkpoint's input order, [embedding; hidden], not the paper's."""

    config: ModelConfig
    block: nn.Module

    @nn.compact
    def __call__(self, embedding_btd, hidden_btd, rope, segment_ids):
        """A later token's embedding and this one's hidden state, both [b t d] -> (normed hidden [b t d],
        the block's Routing).
        """
        d = self.config.hidden_size
        w_input = weight(self, "input", embed_and_hidden=2 * d, embed=d)
        normed = [
            RMSNorm(self.config, d, name="embedding_norm")(embedding_btd),
            RMSNorm(self.config, d, name="hidden_norm")(hidden_btd),
        ]
        x_btd = dot("btz,zd->btd", jnp.concatenate(normed, axis=-1), w_input)
        x_btd, routing = self.block.train(x_btd, rope, segment_ids, None)
        return RMSNorm(self.config, d, name="head_norm")(x_btd), routing
