"""FP4 numbers, two in a byte, with one scale for 32 columns: DeepSeek-V4's experts (arXiv:2606.19348).

A number is e2m1: a sign, two bits of exponent, one of mantissa. Even columns are in the low halves of bytes.
The scales are powers of two; checkpoints store them as e8m0.
"""

import jax.numpy as jnp

from deepseek_jax.ops import fp8

# The magnitudes of codes 0 to 7; codes 8 to 15 are their negatives
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Rows and columns that share a scale
TILE = (1, 32)


def dequantize(codes, scale):
    """Multiply the numbers of `codes` by their scales.

    XLA takes numbers below 2^-126 for zero: such results, and the scale 2^-127.

    Args:
        codes: int8[... i j/2], two numbers in each byte.
        scale: float32[... i ceil(j / 32)].

    Returns:
        float32[... i j].
    """
    nibbles = jnp.stack([codes & 15, (codes >> 4) & 15], axis=-1)
    nibbles = nibbles.reshape(*codes.shape[:-1], 2 * codes.shape[-1])
    # Arithmetic instead of a table: chips gather single numbers slowly
    exponent, mantissa = (nibbles >> 1) & 3, nibbles & 1
    quarters = jnp.where(exponent == 0, 2 * mantissa, (2 + mantissa) << exponent)
    magnitudes = quarters.astype(jnp.float32) / 4
    return fp8.dequantize(jnp.where(nibbles >= 8, -magnitudes, magnitudes), scale, TILE)


def quantize(x):
    """Round x to FP4, ties to the even code, with new scales.

    A scale is the smallest power of two by which no number of its tile exceeds 6, and 1 if the tile is all
    zeros. The released code rounds an indexer's keys so; how its weights were rounded is not known.

    Args:
        x: float[... i j], finite; j is even.

    Returns:
        codes int8[... i j/2] and scale float32[... i ceil(j / 32)], see `dequantize`.
    """
    x = x.astype(jnp.float32)
    (*lead, i, j), columns = x.shape, TILE[1]
    padded = jnp.pad(jnp.abs(x), [(0, 0)] * (x.ndim - 1) + [(0, -j % columns)])
    amax = padded.reshape(*lead, i, -1, columns).max(-1)
    scale = fp8.tile_scale(amax, power_of_two=True, largest=MAGNITUDES[-1])
    quotients = jnp.abs(x) / jnp.repeat(scale, columns, axis=-1)[..., :j]
    nibbles = jnp.signbit(x) * 8
    for code, (below, above) in enumerate(zip(MAGNITUDES, MAGNITUDES[1:], strict=False), 1):
        middle = (below + above) / 2
        # A tie goes up if the upper code is the even one
        nibbles += quotients >= middle if code % 2 == 0 else quotients > middle
    pairs = nibbles.reshape(*x.shape[:-1], j // 2, 2)
    return (pairs[..., 0] | pairs[..., 1] << 4).astype(jnp.uint8).view(jnp.int8), scale
