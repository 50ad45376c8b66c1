"""Roundings of DeepSeek-V4's released inference code, which arXiv:2606.19348 trains with.

They are for parity with the release. They have no gradient, not even a straight-through one: a
differentiated call raises ValueError.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.fp8 import MAX, power_of_two_above
from deepseek_jax.ops.selection import index_scores

# Numbers that share one scale, in FP8 and in FP4
FP8_BLOCK, FP4_BLOCK = 64, 32
# The largest finite e2m1
FP4_MAX = 6.0


@jax.custom_jvp
def _without_gradient(x):
    return x


@_without_gradient.defjvp
def _refuse(primals, tangents):
    raise ValueError(
        "release_rounding=True rounds keys, which has no gradient; set release_rounding to False "
        "to train"
    )


def fp8_keys(x, rotary: int):
    """Round all but the last `rotary` numbers of keys [... x] to E4M3, in blocks of 64.

    A block's scale is a power of two, for a largest magnitude of at least 1e-4.
    """
    x, rotated = jnp.split(_without_gradient(x), [x.shape[-1] - rotary], axis=-1)
    rounded = _rounded(x, FP8_BLOCK, jnp.float8_e4m3fn, largest=MAX, least=1e-4)
    return jnp.concatenate([rounded, rotated], axis=-1)


def fp4_index(x, rotary: int):
    """Rotate an indexer's queries or keys [... y] by Hadamard's matrix, and round them to E2M1.

    Blocks have 32 numbers and scales as in fp8_keys, for a largest magnitude of at least 6 * 2^-126.
    The last `rotary` numbers are half-split, see ops.rope. The result has the release's order, in
    which their pairs are side by side: the matrix mixes neighbours first.
    """
    y = x.shape[-1]
    plain, *halves = jnp.split(_without_gradient(x), [y - rotary, y - rotary // 2], axis=-1)
    pairs = jnp.stack(halves, axis=-1).reshape(*plain.shape[:-1], rotary)
    mixed = hadamard(jnp.concatenate([plain, pairs], axis=-1).astype(jnp.float32))
    mixed = (mixed * y**-0.5).astype(x.dtype)
    least = FP4_MAX * 2.0**-126
    return _rounded(mixed, FP4_BLOCK, jnp.float4_e2m1fn, largest=FP4_MAX, least=least)


def hadamard(x):
    """Multiply x[... y] by Hadamard's matrix in Sylvester's order; y is a power of two."""
    *lead, y = x.shape
    for step in (2**i for i in range(y.bit_length() - 1)):
        first, second = jnp.unstack(x.reshape(*lead, y // (2 * step), 2, step), axis=-2)
        x = jnp.stack([first + second, first - second], axis=-2).reshape(*lead, y)
    return x


def _rounded(x, block, dtype, *, largest, least):
    """Round x[... n] to dtype and back, in blocks of the last axis, each with its scale."""
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // block, block).astype(jnp.float32)
    amax = jnp.maximum(jnp.abs(blocks).max(-1, keepdims=True), least)
    scale = power_of_two_above(amax / largest)
    return (
        ((blocks / scale).astype(dtype).astype(jnp.float32) * scale)
        .reshape(x.shape)
        .astype(x.dtype)
    )


def bfloat16_index_scores(q_btjy, k_bsy, w_btj):
    """Compute ops.selection.index_scores with products, weights and sums in bfloat16.

    Args:
        q_btjy: From fp4_index.
        k_bsy: From fp4_index.
        w_btj: Not scaled.
    """
    return index_scores(q_btjy, k_bsy, w_btj, _scores_of_block)


def _scores_of_block(q_btjy, k_bsy, w_btj):
    j, y = q_btjy.shape[2:]
    q_btjy, k_bsy, w_btj = (x.astype(jnp.bfloat16) for x in (q_btjy, k_bsy, w_btj))
    positive_btjs = jax.nn.relu(dot("btjy,bsy->btjs", q_btjy, k_bsy))
    weighted_btjs = (w_btj * (j * y) ** -0.5)[..., None] * positive_btjs
    return weighted_btjs.astype(jnp.float32).sum(2).astype(jnp.bfloat16).astype(jnp.float32)
