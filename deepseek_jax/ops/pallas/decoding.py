"""Absorbed latent attention over a cache: scores stay in a TPU core's vector memory.

Latents are both keys and values, and this kernel reads them once. JAX's kernels read keys and
values separately, about twice the bytes of V3's cache. tokamax 0.0.12 has only splash attention.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# Tokens of the cache that are read at once: the largest of these that divides its length
BLOCKS = (1024, 512, 256, 128)
LANES = 128
MASKED = -1e30


def takes(q, latents, kv_lora_rank: int):
    """Return whether the kernel takes these arrays.

    It needs values of whole lanes, a cache of whole blocks, heads that fill tiles (a multiple of
    16), and bfloat16: it would round float32.
    """
    whole = latents.shape[1] % BLOCKS[-1] == 0 and kv_lora_rank % LANES == 0
    return whole and q.shape[1] % 16 == 0 and q.dtype == jnp.bfloat16


def attend_latent(q, latents, mask, kv_lora_rank: int, scale: float, interpret=False):
    """Compute ops.attention.attend_latent by the online softmax of arXiv:2205.14135.

    The softmax runs over blocks of the cache.

    Raises:
        ValueError: If the length of the cache is not a multiple of 128.
    """
    (b, h, x), s, c = q.shape, latents.shape[1], kv_lora_rank
    if s % BLOCKS[-1]:
        raise ValueError(
            f"attend_latent's kernel reads blocks of {BLOCKS[-1]} tokens, and the cache has {s}; pass a "
            "multiple, or another implementation: plain"
        )
    block = next(size for size in BLOCKS if s % size == 0)

    def of_sequence(*shape):
        return pl.BlockSpec((None, *shape), lambda i, j: (i, 0, 0))

    def of_block(width):
        return pl.BlockSpec((None, width, block), lambda i, j: (i, 0, j))

    cells = b * h * s
    return pl.pallas_call(
        functools.partial(_kernel, scale=scale),
        grid=(b, s // block),
        in_specs=[
            of_sequence(h, x),
            of_block(x),
            of_block(1),
        ],
        out_specs=of_sequence(h, c),
        out_shape=jax.ShapeDtypeStruct((b, h, c), latents.dtype),
        scratch_shapes=[
            pltpu.VMEM((h, LANES), jnp.float32),
            pltpu.VMEM((h, LANES), jnp.float32),
            pltpu.VMEM((h, c), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * cells * (x + c),
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in (q, latents)),
            transcendentals=cells,
        ),
        name="latent_decoding",
        interpret=interpret,
        # This swap moves nothing: 128 does not divide 576, so a TPU lays the cache's tokens along
        # lanes
    )(q, latents.swapaxes(1, 2), mask[:, None].astype(jnp.int32))


def _kernel(q, latents, mask, out, largest, total, summed, *, scale):
    """Add one block of one sequence's cache to the running sums.

    latents: [c+r s]. largest, total: [h lanes], the same in every lane. summed: [h c].
    """
    at = pl.program_id(1)

    @pl.when(at == 0)
    def _():
        largest[...] = jnp.full_like(largest, MASKED)
        total[...] = jnp.zeros_like(total)
        summed[...] = jnp.zeros_like(summed)

    scores_hs = jnp.dot(q[...], latents[...], preferred_element_type=jnp.float32) * scale
    scores_hs = jnp.where(mask[...] > 0, scores_hs, MASKED)
    before = largest[:, :1]
    above = jnp.maximum(before, scores_hs.max(-1, keepdims=True))
    weights_hs, shrunk = jnp.exp(scores_hs - above), jnp.exp(before - above)
    values_cs = latents[: summed.shape[1]]
    summed[...] = shrunk * summed[...] + jax.lax.dot_general(
        weights_hs.astype(values_cs.dtype),
        values_cs,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    total[...] = shrunk * total[...] + weights_hs.sum(-1, keepdims=True)
    largest[...] = jnp.broadcast_to(above, largest.shape)

    @pl.when(at == pl.num_programs(1) - 1)
    def _():
        out[...] = (summed[...] / total[:, :1]).astype(out.dtype)
