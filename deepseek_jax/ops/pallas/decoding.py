"""Absorbed latent attention over a cache, whose scores stay in a TPU core's vector memory.

Latents are both keys and values, and this kernel reads them once. JAX's kernels read keys and values apart,
of V3's cache about twice the bytes: paged_attention takes two arrays of one width, and splash attention needs
a copy of the cache in which latents and rotary keys are joined. tokamax 0.0.12 has splash attention alone.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# Tokens of the cache that are read at once: the largest of these that divides it
BLOCKS = (1024, 512, 256, 128)
LANES = 128
MASKED = -1e30


def takes(q_latent, c_kv):
    """Whether the kernel takes these shapes: a latent of whole lanes, a cache of whole blocks, and as many
    heads as fill a tile.
    """
    return (
        c_kv.shape[1] % BLOCKS[-1] == 0
        and c_kv.shape[2] % LANES == 0
        and q_latent.shape[1] % 16 == 0
    )


def attend_latent(q_latent, q_rope, c_kv, k_rope, mask, scale, interpret=False):
    """ops.attention.attend_latent, with the online softmax of arXiv:2205.14135 over blocks of the cache."""
    (b, h, c), r, s = q_latent.shape, q_rope.shape[-1], c_kv.shape[1]
    if s % BLOCKS[-1]:
        raise ValueError(
            f"attend_latent's kernel reads blocks of {BLOCKS[-1]} tokens, and c_kv has {s}; pass a multiple, "
            "or another implementation: plain"
        )
    block = next(size for size in BLOCKS if s % size == 0)

    def of_sequence(*shape):
        return pl.BlockSpec((None, *shape), lambda i, j: (i, 0, 0))

    def of_block(width):
        return pl.BlockSpec((None, block, width), lambda i, j: (i, j, 0))

    cells = b * h * s
    return pl.pallas_call(
        functools.partial(_kernel, scale=scale),
        grid=(b, s // block),
        in_specs=[
            of_sequence(h, c),
            of_sequence(h, r),
            of_block(c),
            of_block(r),
            pl.BlockSpec((None, 1, block), lambda i, j: (i, 0, j)),
        ],
        out_specs=of_sequence(h, c),
        out_shape=jax.ShapeDtypeStruct((b, h, c), c_kv.dtype),
        scratch_shapes=[
            pltpu.VMEM((h, LANES), jnp.float32),
            pltpu.VMEM((h, LANES), jnp.float32),
            pltpu.VMEM((h, c), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * cells * (2 * c + r),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (c_kv, k_rope, q_latent)),
            transcendentals=cells,
        ),
        name="latent_decoding",
        interpret=interpret,
    )(q_latent, q_rope, c_kv, k_rope, mask[:, None].astype(jnp.int32))


def _kernel(q_latent, q_rope, c_kv, k_rope, mask, out, largest, total, summed, *, scale):
    """One block of one sequence's cache. largest, total: [h lanes], the same in every lane; summed: [h c]."""
    at = pl.program_id(1)

    @pl.when(at == 0)
    def _():
        largest[...] = jnp.full_like(largest, MASKED)
        total[...] = jnp.zeros_like(total)
        summed[...] = jnp.zeros_like(summed)

    def scores(queries, keys):
        over = (((1,), (1,)), ((), ()))
        return jax.lax.dot_general(
            queries[...], keys[...], over, preferred_element_type=jnp.float32
        )

    scores_hs = (scores(q_latent, c_kv) + scores(q_rope, k_rope)) * scale
    scores_hs = jnp.where(mask[...] > 0, scores_hs, MASKED)
    before = largest[:, :1]
    above = jnp.maximum(before, scores_hs.max(-1, keepdims=True))
    weights_hs, shrunk = jnp.exp(scores_hs - above), jnp.exp(before - above)
    values = jnp.dot(weights_hs.astype(c_kv.dtype), c_kv[...], preferred_element_type=jnp.float32)
    summed[...] = shrunk * summed[...] + values
    total[...] = shrunk * total[...] + weights_hs.sum(-1, keepdims=True)
    largest[...] = jnp.broadcast_to(above, largest.shape)

    @pl.when(at == pl.num_programs(1) - 1)
    def _():
        out[...] = (summed[...] / total[:, :1]).astype(out.dtype)
