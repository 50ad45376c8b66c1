"""FP8 weights as DeepSeek-V3 stores them: e4m3, one scale for 128 x 128 of them (arXiv:2412.19437, 3.3)."""

import jax.numpy as jnp

BLOCK = 128
MAX = 448.0  # the largest finite e4m3


def dequantize(values, scale):
    """float8_e4m3fn[i j] times its blocks' scale, float32[ceil(i / 128), ceil(j / 128)] -> float32[i j]."""
    i, j = values.shape
    scale_ij = jnp.repeat(jnp.repeat(scale, BLOCK, axis=0)[:i], BLOCK, axis=1)[:, :j]
    return values.astype(jnp.float32) * scale_ij


def quantize(weights):
    """weights: float[i j] -> (float8_e4m3fn[i j], scale float32[ceil(i / 128), ceil(j / 128)]).

    A block's scale is its largest magnitude over 448 (1 where the block is all zeros); ragged last blocks
    count as padded with zeros.
    """
    i, j = weights.shape
    padded = jnp.pad(weights.astype(jnp.float32), ((0, -i % BLOCK), (0, -j % BLOCK)))
    blocks = padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    largest = jnp.abs(blocks).max((1, 3))
    scale = jnp.where(largest > 0, largest / MAX, 1.0)
    values = jnp.clip(blocks / scale[:, None, :, None], -MAX, MAX).reshape(padded.shape)[:i, :j]
    return values.astype(jnp.float8_e4m3fn), scale
