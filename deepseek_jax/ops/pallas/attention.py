"""Attention by JAX's splash attention: scores stay in a TPU core's vector memory."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from deepseek_jax.ops.saved_names import ATTENDED

# Lanes of a TPU's vector registers: blocks are multiples of it
LANES = 128
# (the fewest tokens of a row, tokens of a block of its queries or keys). Small blocks waste less
# beyond the diagonal; large ones read keys less often
BLOCKS = (0, 512), (8192, 1024)
# Narrower heads would fill few lanes
NARROWEST_HEAD = 64


def takes(q, v):
    """Return whether the kernel takes heads of this width and dtype.

    It would round float32 to bfloat16.

    Args:
        q: [b t h x].
        v: [b t k u].
    """
    return q.dtype == jnp.bfloat16 and min(q.shape[-1], v.shape[-1]) >= NARROWEST_HEAD


def attend(q, k, v, segment_ids, scale, interpret=False):
    """Compute ops.attention.attend; with interpret, by the kernel's emulation on any machine."""
    t, h = q.shape[1:3]
    block = max(size for length, size in BLOCKS if t >= length)
    block = min(block, t + -t % LANES)
    # Pad the end of a row: no earlier query sees what comes there
    padding = -t % block

    def by_head(x):
        return jnp.swapaxes(jnp.pad(x, [(0, 0), (0, padding), (0, 0), (0, 0)]), 1, 2)

    # The kernel does not scale scores: scale the queries
    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)
    segments = jnp.pad(segment_ids, [(0, 0), (0, padding)]).astype(jnp.int32)
    mask = splash.CausalMask((t + padding, t + padding))
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * h),
        block_sizes=_blocks(block),
        head_shards=1,
        q_seq_shards=1,
        # remat="attention" saves these for the backward pass, so that the kernel runs once
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    out_bhtu = jax.vmap(kernel)(
        *map(by_head, (scaled, k, v)), splash.SegmentIds(segments, segments)
    )
    return jnp.swapaxes(out_bhtu, 1, 2)[:, :t]


def _blocks(block):
    of_queries = ("block_q", "block_q_dkv", "block_q_dq")
    of_keys = ("block_kv", "block_kv_dkv", "block_kv_dq")
    computed = ("block_kv_compute", "block_kv_dkv_compute")
    return splash.BlockSizes(**dict.fromkeys((*of_queries, *of_keys, *computed), block))
