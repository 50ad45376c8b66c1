"""Per-token results without ever holding a [tokens, vocabulary] array."""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.logprobs import LOGITS_ALIVE


def map_chunks(of_chunk, arrays, *, width, chunk_size=None):
    """of_chunk(arrays), a few rows at a time: arrays and results are trees of [m ...], rows independent.

    width: how many numbers of_chunk makes of one row; chunk_size rows are worked on at once (default: what
    keeps LOGITS_ALIVE numbers). What of_chunk makes is recomputed for the gradient. Rows of zeros fill the
    last chunk, so of_chunk has to be finite on them.
    """
    m = len(jax.tree.leaves(arrays)[0])
    chunk = min(chunk_size or max(LOGITS_ALIVE // width, 1), m)
    chunk = -(-m // -(-m // chunk))  # even chunks: as few, with the least padding

    def cut(x):
        padded = jnp.pad(x, [(0, -m % chunk)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, chunk, *x.shape[1:])

    results = jax.lax.map(jax.checkpoint(of_chunk), jax.tree.map(cut, arrays))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:m], results)
