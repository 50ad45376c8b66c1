"""The compressor, which makes one key of each window of tokens (arXiv:2606.19348, section 2.3).

Tests: tests/models/v4/test_mistakes.py, tests/models/v4/test_rows.py.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepseek_jax.models.layers import RMSNorm, weight
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.ops.compress import Windows, find_windows, pool
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.rope import apply_rope_last, rope_frequencies, rope_tables, yarn_frequencies
from deepseek_jax.parallel.context import over_queries


class EntryPlaces(NamedTuple):
    """Where entries are in the rows of a batch.

    Attributes:
        windows: The ops.compress.Windows of the rows.
        rope: Cosines and sines of the entries' positions.
    """

    windows: Windows
    rope: tuple[jax.Array, jax.Array]


class Places(NamedTuple):
    """Where tokens and entries are in the rows of a batch, for all layers of one rate.

    Attributes:
        segment_ids: int32[b t], 0 on padding.
        rope: Cosines and sines of the tokens' positions.
        entries: None without a compressor.
    """

    segment_ids: jax.Array
    rope: tuple[jax.Array, jax.Array]
    entries: EntryPlaces | None


def places(config: V4Config, rate: int, positions, segment_ids) -> Places:
    """Compute the Places of rows, int32[b t] each, in layers of this rate."""
    frequencies = rotary_frequencies(config, rate)
    rope = rope_tables(positions, frequencies)
    if not rate:
        return Places(segment_ids, rope, None)
    windows = find_windows(positions, segment_ids, rate)
    entry_rope = rope_tables(windows.positions, frequencies)
    return Places(segment_ids, rope, EntryPlaces(windows, entry_rope))


def rotary_frequencies(config: V4Config, rate: int):
    """Return the rotary frequencies of layers of this rate, float32[qk_rope_head_dim / 2].

    Layers without a compressor have plain ones. The others have another base and YaRN, without its
    factor on cosines, sines and scores.
    """
    dim, scaling = config.qk_rope_head_dim, config.rope_scaling
    if not rate:
        return rope_frequencies(dim, config.rope_theta)
    if scaling is None:
        return rope_frequencies(dim, config.compress_rope_theta)
    return yarn_frequencies(
        dim,
        config.compress_rope_theta,
        factor=scaling.factor,
        original_max_position_embeddings=scaling.original_max_position_embeddings,
        beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow,
    )


class Compressor(nn.Module):
    """Pool windows of tokens to normed and rotated entries.

    Attributes:
        config: The model.
        rate: The tokens of a window.
        width: The width of an entry.
        axis: The logical name of the width.
        overlaps: True if an entry pools the window before, too, by a second series of projections.
    """

    config: V4Config
    rate: int
    width: int
    axis: str
    overlaps: bool

    @nn.compact
    def __call__(self, x_btd, at: EntryPlaces):
        """Compress x [b t d], the normed input of attention, to entries [b w x]."""
        # Series 0 is read by the entry of the next window, and the last series by the window's own
        sizes = {"series": 1 + self.overlaps, self.axis: self.width}
        w_kv = weight(self, "kv", embed=self.config.hidden_size, **sizes)
        w_gate = weight(self, "gate", embed=self.config.hidden_size, **sizes)
        zeros = nn.initializers.zeros
        bias_ozx = weight(self, "position_bias", init=zeros, window=self.rate, **sizes)
        # float32 from here on to the entries, in every dtype
        values_btzx = dot("btd,dzx->btzx", x_btd, w_kv, jnp.float32)
        logits_btzx = dot("btd,dzx->btzx", x_btd, w_gate, jnp.float32)

        def pool_windows(windows, tokens, first, bias_ozx):
            values_btzx, logits_btzx = tokens
            return pool(values_btzx, logits_btzx, bias_ozx, windows)

        # Each device pools its own windows
        entries_bwx = over_queries(pool_windows, at.windows, (values_btzx, logits_btzx), bias_ozx)
        entries_bwx = entries_bwx.astype(x_btd.dtype)
        entries_bwx = RMSNorm(self.config, self.width, self.axis, name="norm")(entries_bwx)
        return apply_rope_last(entries_bwx[:, :, None], *at.rope)[:, :, 0]
