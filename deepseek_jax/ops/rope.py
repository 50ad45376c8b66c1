"""Rotary position embedding, half-split, with YaRN's and Llama 3's long-context scalings.

Linear scaling needs no function: its caller divides rope_frequencies by the factor.
"""

import math

import jax.numpy as jnp
import numpy as np


def rope_frequencies(dim: int, theta: float):
    """Return the angular step of each rotary pair: theta ** (-2i / dim), float32[dim / 2].

    arXiv:2104.09864.
    """
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)).astype(np.float32)


def yarn_frequencies(dim, theta, *, factor, original_max_position_embeddings, beta_fast, beta_slow):
    """Return YaRN's frequencies (arXiv:2309.00071, section 3.2): float32[dim / 2].

    Pairs that turn fewer than beta_slow times in the original context are slowed by `factor`. Pairs
    that turn more than beta_fast times do not change. Between the two, a linear ramp over the
    pairs' indices blends them.
    """

    # Pair i turns length / (2 pi theta ** (2i / dim)) times in the original context: solve for i
    def pair_that_turns(times):
        return (
            dim
            * math.log(original_max_position_embeddings / (times * 2 * math.pi))
            / (2 * math.log(theta))
        )

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    # dim - 1, as in the released code, though the last pair is dim / 2 - 1
    high = min(math.ceil(pair_that_turns(beta_slow)), dim - 1)
    # 0.001: if low equals high, the ramp is a step and not a division by zero
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1).astype(np.float32)
    frequencies = rope_frequencies(dim, theta)
    return frequencies * (1 - ramp) + frequencies / factor * ramp


def yarn_mscale(factor, mscale):
    """Return YaRN's attention temperature: 0.1 mscale ln(factor) + 1 (arXiv:2309.00071, eq. 22).

    1 if the factor is at most 1.
    """
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def llama3_frequencies(
    dim, theta, *, factor, original_max_position_embeddings, low_freq_factor, high_freq_factor
):
    """Return Llama 3.1's frequencies: float32[dim / 2].

    Pairs that turn fewer than low_freq_factor times in the original context are slowed by `factor`.
    Pairs that turn more than high_freq_factor times do not change. Between the two, a blend.
    """
    frequencies = rope_frequencies(dim, theta)
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    # The docstring's three cases in one clip: 0 slows a pair, 1 leaves it unchanged
    keep = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return (frequencies * keep + frequencies / factor * (1 - keep)).astype(np.float32)


def rope_tables(positions, frequencies, amplitude=1.0):
    """Return amplitude times the cosines and sines of all angles: two float32[... dim / 2].

    An angle is a position, int32[...], times a frequency.
    """
    # Float32, whatever the compute dtype: bfloat16 cannot represent an odd position above 256
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude


def apply_rope(x, cos, sin):
    """Rotate the pairs (x[i], x[i + dim / 2]) of x, by their tokens' angles.

    Half-split order: checkpoints with adjacent pairs (DeepSeek) are permuted when they are loaded.

    Args:
        x: [... heads dim].
        cos: [... dim / 2], from `rope_tables`.
        sin: [... dim / 2], from `rope_tables`.

    Returns:
        [... heads dim] in x's dtype.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


def apply_rope_last(x, cos, sin):
    """Rotate the last numbers of each head, as many as the angles need, by `apply_rope`.

    With -sin it is the inverse.

    Args:
        x: [... heads x].
        cos: [... dim / 2], from `rope_tables`, with dim at most x.
        sin: [... dim / 2], from `rope_tables`.
    """
    unrotated, rotary = jnp.split(x, [x.shape[-1] - 2 * cos.shape[-1]], axis=-1)
    return jnp.concatenate([unrotated, apply_rope(rotary, cos, sin)], axis=-1)
