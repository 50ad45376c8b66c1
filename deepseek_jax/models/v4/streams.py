"""The coefficients by which sublayers mix the residual streams (arXiv:2512.24880).

Tests: tests/models/v4/test_mistakes.py.
"""

import flax.linen as nn

from deepseek_jax.models.layers import weight
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.ops import streams


class StreamMixing(nn.Module):
    """One sublayer's ops.streams.Mixing, computed from the streams that it reads."""

    config: V4Config

    @nn.compact
    def __call__(self, streams_btzd):
        """Return the Mixing of streams [b t z d]."""
        cfg, z = self.config, self.config.hc_mult
        logits_btx = _logits(self, cfg, streams_btzd, 2 * z + z * z)
        base_x = weight(self, "base_bias", init=nn.initializers.zeros, mixes=2 * z + z * z)
        scale = weight(self, "scale", init=nn.initializers.ones, mixes=3)
        iterations, eps = cfg.hc_sinkhorn_iters, cfg.hc_eps
        return streams.mixing(logits_btx, base_x, scale, iterations=iterations, eps=eps)


class StreamEnd(nn.Module):
    """The sum of the streams that the final norm reads."""

    config: V4Config

    @nn.compact
    def __call__(self, streams_btzd):
        """Collapse streams [b t z d] to [b t d]."""
        cfg, z = self.config, self.config.hc_mult
        logits_btz = _logits(self, cfg, streams_btzd, z)
        base_z = weight(self, "base_bias", init=nn.initializers.zeros, mixes=z)
        scale = weight(self, "scale", init=nn.initializers.ones, mixes=1)
        return streams.read(streams_btzd, nn.sigmoid(logits_btz * scale + base_z) + cfg.hc_eps)


def _logits(module, cfg, streams_btzd, mixes):
    w_zdx = weight(module, "mix", streams=cfg.hc_mult, embed=cfg.hidden_size, mixes=mixes)
    return streams.coefficient_logits(streams_btzd, w_zdx, cfg.rms_norm_eps)
