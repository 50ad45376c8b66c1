"""Multi-token prediction: each module predicts one token further ahead.

arXiv:2412.19437, section 2.2.

Tests: tests/models/test_steps.py.
"""

import flax.linen as nn
import jax.numpy as jnp
from typing_extensions import override

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import RMSNorm, linear, weight


class MultiTokenPrediction(nn.Module):
    """A module that predicts one token further ahead (eqs. 21-22).

    Every method takes the embedding of a later token and the hidden state of this token, both [b t
    d]. They are joined as [embedding; hidden], the order of the released checkpoint, and not in the
    order of the equations.
    """

    config: ModelConfig
    block: nn.Module

    @override
    def setup(self):
        cfg, d = self.config, self.config.hidden_size
        self.w_input = weight(self, "input", embed_and_hidden=2 * d, embed=d)
        self.embedding_norm = RMSNorm(cfg, d)
        self.hidden_norm = RMSNorm(cfg, d)
        # The released checkpoint has this norm before the shared head; eqs. 21-23 do not have it
        self.head_norm = RMSNorm(cfg, d)

    def _input(self, embedding_btd, hidden_btd):
        normed = self.embedding_norm(embedding_btd), self.hidden_norm(hidden_btd)
        return linear(self.config, "btz,zd->btd", jnp.concatenate(normed, axis=-1), self.w_input)

    def __call__(self, embedding_btd, hidden_btd, rope, segment_ids):
        """Run the module in training.

        Returns:
            The normed hidden state [b t d], and the block's Report.
        """
        x_btd = self._input(embedding_btd, hidden_btd)
        x_btd, (report, _) = self.block.train(x_btd, rope, segment_ids, None, False)
        return self.head_norm(x_btd), report

    def prefill(self, embedding_btd, hidden_btd, rope, segment_ids):
        """Run the module over prompts, before decoding: return the block's cache entries."""
        return self.block(self._input(embedding_btd, hidden_btd), rope, segment_ids)[2]

    def extend(self, embedding_btd, hidden_btd, rope, cache, write):
        """Run the module on t new tokens of each sequence, see DecoderLayer.extend.

        Returns:
            The normed hidden state [b t d], and the block's cache.
        """
        x_btd = self._input(embedding_btd, hidden_btd)
        x_btd, cache, _ = self.block.extend(x_btd, rope, cache, write)
        return self.head_norm(x_btd), cache
