"""Multi-token prediction of DeepSeek-V4: one layer that predicts one token further ahead.

arXiv:2606.19348; arXiv:2412.19437, section 2.2.
"""

import flax.linen as nn
from typing_extensions import override

from deepseek_jax.models.layers import RMSNorm, weight
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.models.v4.streams import StreamEnd
from deepseek_jax.ops.dot import dot


class MultiTokenPrediction(nn.Module):
    """A module that reads the streams of a token and the embedding of a later one.

    V3's module joins the two by one projection. Here each has its own, and every stream gets the
    same embedding.
    """

    config: V4Config
    block: nn.Module

    @override
    def setup(self):
        cfg, d = self.config, self.config.hidden_size
        self.embedding_norm = RMSNorm(cfg, d)
        self.hidden_norm = RMSNorm(cfg, d)
        # Of the two axes of a square matrix, the mesh splits the first
        self.w_embedding = weight(self, "embedding_input", embed=d, embed_out=d)
        self.w_hidden = weight(self, "hidden_input", embed=d, embed_out=d)
        self.stream_end = StreamEnd(cfg)
        self.head_norm = RMSNorm(cfg, d)

    def __call__(self, embedding_btd, streams_btzd, rows):
        """Run the module.

        Args:
            embedding_btd: [b t d], of the later token.
            streams_btzd: [b t z d], before they are collapsed.
            rows: See decoder.Rows.

        Returns:
            The normed hidden state [b t d] for the output head, the streams [b t z d], and the
            block's Report.
        """
        embedded_btd = dot("btd,dx->btx", self.embedding_norm(embedding_btd), self.w_embedding)
        hidden_btzd = dot("btzd,dx->btzx", self.hidden_norm(streams_btzd), self.w_hidden)
        streams_btzd, report, _ = self.block(embedded_btd[:, :, None] + hidden_btzd, rows)
        return self.head_norm(self.stream_end(streams_btzd)), streams_btzd, report
