"""Rounding to E4M3 with one scale per tile, as in DeepSeek-V3 (arXiv:2412.19437, section 3.3).

ops.fp8_blocks multiplies the rounded values.
"""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.ops.pallas import fp8 as pallas
from deepseek_jax.ops.pallas.fp8 import LARGEST, TERMS
from deepseek_jax.ops.platform import choose

# The largest finite e4m3
MAX = 448.0
# Shapes of tiles: ROW and COLUMN for activations and gradients, BLOCK for weights
ROW, COLUMN, BLOCK = (1, TERMS), (TERMS, 1), (TERMS, TERMS)


def quantize(
    x,
    tile: tuple[int, int],
    *,
    power_of_two: bool = False,
    scale=None,
    implementation: str | None = None,
):
    """Round x to E4M3, with one scale per tile.

    A tile's scale is its largest magnitude over 448, and 1 if the tile is all zeros. The released
    inference kernel has a floor of 1e-4 / 448 instead, under which small gradients would vanish.
    Tiles that an edge cuts off are padded with zeros. Infinity saturates, and NaN stays NaN.

    Args:
        x: float[... i j].
        tile: Rows and columns of a tile.
        power_of_two: Round scales up to powers of two.
        scale: The ROW scales of x, if x holds E4M3 values.
        implementation: "plain"; on TPU also "kernel", which rounds in one pass over memory but
            needs tiles that cover x evenly. "interpreted" emulates the kernel. None takes the
            choice of ops.platform.

    Returns:
        Values float8_e4m3fn[... i j], and scales float32[... ceil(i / tile[0]) ceil(j / tile[1])].
    """
    form = choose(
        "quantize",
        implementation,
        suits=lambda: pallas.is_whole(x, tile),
        plain=_quantize,
        kernel=pallas.quantize,
        interpreted=functools.partial(pallas.quantize, interpret=True),
    )
    return form(x, tile, functools.partial(tile_scale, power_of_two=power_of_two), scale)


def _quantize(x, tile, of_amax, scale=None):
    x = x.astype(jnp.float32) if scale is None else dequantize(x, scale, ROW)
    # float32's own maximum may round up to infinity
    x = jnp.clip(x, -LARGEST, LARGEST)
    (*lead, i, j), (a, b) = x.shape, tile
    padded = jnp.pad(jnp.abs(x), [(0, 0)] * len(lead) + [(0, -i % a), (0, -j % b)])
    amax = padded.reshape(*lead, -(-i // a), a, -(-j // b), b).max((-3, -1))
    scale = of_amax(amax)
    # No clip to MAX: rounding leaves a quotient at most a few ulps above 448, which becomes 448
    return (x / _spread(scale, tile, x.shape)).astype(jnp.float8_e4m3fn), scale


def dequantize(values, scale, tile: tuple[int, int]):
    """Multiply the values of `quantize` by their scales: float32[... i j].

    A checkpoint's weight_scale_inv is a scale for the tile BLOCK.
    """
    return values.astype(jnp.float32) * _spread(scale, tile, values.shape)


def tile_scale(amax, power_of_two: bool = False, largest: float = MAX):
    """Return a tile's scale from its largest magnitude: float32[...] -> float32[...].

    Args:
        amax: The largest magnitude.
        power_of_two: Round the scale up to a power of two.
        largest: The magnitude that amax over its scale is at most.
    """
    # Chips flush subnormal numbers to zero, and a scale of 0 would divide by 0
    smallest = jnp.finfo(jnp.float32).tiny
    scale = jnp.where(amax > 0, jnp.maximum(amax / largest, smallest), 1.0)
    return power_of_two_above(scale) if power_of_two else scale


def power_of_two_above(x):
    """Round positive float32 numbers up to powers of two."""
    # Adding a full mantissa carries any mantissa bit into the exponent: it rounds up
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jax.lax.bitcast_convert_type((bits + 0x7FFFFF) & ~0x7FFFFF, jnp.float32)


def _spread(scale, tile, shape):
    full = jnp.repeat(jnp.repeat(scale, tile[0], axis=-2), tile[1], axis=-1)
    return full[..., : shape[-2], : shape[-1]]
