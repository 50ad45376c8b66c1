"""Rotary position embedding, half-split, and its long-context scalings (YaRN, Llama 3, linear)."""

import math

import jax.numpy as jnp
import numpy as np


def rope_frequencies(dim: int, theta: float):
    """Angular step of each rotary pair: theta ** (-2i / dim) (arXiv:2104.09864). Returns float32[dim / 2]."""
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)).astype(np.float32)


def yarn_frequencies(dim, theta, *, factor, original_max_position_embeddings, beta_fast, beta_slow):
    """YaRN's frequencies (arXiv:2309.00071, section 3.2): float32[dim / 2].

    Pairs that turn fewer than beta_slow times in the original context are slowed by `factor`. Pairs that turn
    more than beta_fast times stay as they are. A linear ramp over the pairs' indices blends between the two.
    """

    # Pair i turns length / (2 pi theta ** (2i / dim)) times in the original context: this is solved for i
    def pair_that_turns(times):
        return (
            dim
            * math.log(original_max_position_embeddings / (times * 2 * math.pi))
            / (2 * math.log(theta))
        )

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    # dim - 1, as in the released code, though the last pair is dim / 2 - 1
    high = min(math.ceil(pair_that_turns(beta_slow)), dim - 1)
    # 0.001: where low equals high the ramp is a step, not a division by zero
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1).astype(np.float32)
    frequencies = rope_frequencies(dim, theta)
    return frequencies * (1 - ramp) + frequencies / factor * ramp


def yarn_mscale(factor, mscale):
    """YaRN's attention temperature: 0.1 mscale ln(factor) + 1 (arXiv:2309.00071, eq. 22)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def llama3_frequencies(
    dim, theta, *, factor, original_max_position_embeddings, low_freq_factor, high_freq_factor
):
    """Llama 3.1's frequencies: float32[dim / 2].

    Pairs that turn fewer than low_freq_factor times in the original context are slowed by `factor`. Pairs
    that turn more than high_freq_factor times stay as they are. Between the two, a blend.
    """
    frequencies = rope_frequencies(dim, theta)
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    # The three cases of the docstring in one clip: 0 slows a pair, 1 leaves it as it is
    keep = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return (frequencies * keep + frequencies / factor * (1 - keep)).astype(np.float32)


def rope_tables(positions, frequencies, amplitude=1.0):
    """amplitude * (cosines, sines) of positions int32[...] times frequencies: two float32[..., dim / 2]."""
    # In float32 whatever the compute dtype: bfloat16 cannot hold an odd position above 256
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude


def apply_rope(x, cos, sin):
    """Rotate pairs (x[i], x[i + dim / 2]) of x[..., heads, dim] by tables [..., dim / 2], in x's dtype.

    Half-split order: checkpoints with adjacent pairs (DeepSeek) are permuted when loaded.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)
