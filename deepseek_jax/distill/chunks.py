"""Per-token results without ever holding a [tokens, vocabulary] array."""

import functools

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
    cut = _cutter(m, width, chunk_size)
    results = jax.lax.map(jax.checkpoint(of_chunk), jax.tree.map(cut, arrays))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:m], results)


def weigh_chunks(of_chunk, hidden, head, arrays, whole, weights, *, width, chunk_size=None):
    """A weighted sum of what of_chunk makes of rows, with its gradient from the same pass: none recomputed.

    of_chunk(hidden [c d], head, arrays, whole) -> a tuple of float32[c], rows independent. hidden: [m d].
    arrays: a tree of [m ...]; whole: a tree that every chunk sees. weights: for each result float32[m], or
    None where it counts nothing. width, chunk_size and zeros: as in map_chunks. Returns (total, *results),
    float32[m] each. total has the whole sum in its first row and 0 elsewhere, so that it can go where the
    results go; it alone has a gradient, in hidden and head.
    """
    cut = _cutter(len(hidden), width, chunk_size)
    return _weighed(of_chunk, cut, hidden, head, arrays, whole, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighed(of_chunk, cut, hidden, head, arrays, whole, weights):
    chunks = jax.tree.map(cut, (hidden, arrays))
    results = jax.lax.map(lambda xs: of_chunk(xs[0], head, xs[1], whole), chunks)
    return _with_total(results, weights)


def _weighed_forward(of_chunk, cut, hidden, head, arrays, whole, weights):
    def body(dhead, chunk):
        hidden_md, arrays, weights = chunk
        results, pull = jax.vjp(lambda x, w: of_chunk(x, w, arrays, whole), hidden_md, head)
        pairs = zip(weights, results, strict=True)
        dhidden_md, dw = pull(tuple(jnp.zeros_like(r) if w is None else w for w, r in pairs))
        return dhead + dw, (results, dhidden_md)

    chunks = jax.tree.map(cut, (hidden, arrays, weights))
    dhead, (results, dhidden) = jax.lax.scan(body, jnp.zeros_like(head), chunks)
    dhidden = dhidden.reshape(-1, hidden.shape[-1])[: len(hidden)]
    return _with_total(results, weights), (dhidden, dhead)


def _weighed_backward(of_chunk, cut, gradients, cotangents):
    scale = cotangents[0][0]  # of the total
    return *((scale * g).astype(g.dtype) for g in gradients), None, None, None


_weighed.defvjp(_weighed_forward, _weighed_backward)


def _with_total(results, weights):
    m = next(len(w) for w in weights if w is not None)
    results = [x.reshape(-1)[:m] for x in results]
    total = sum((w * x).sum() for w, x in zip(weights, results, strict=True) if w is not None)
    return jnp.zeros(m).at[0].set(total), *results


def _cutter(m, width, chunk_size):
    """A function [m ...] -> [chunks, rows ...]."""
    chunk = min(chunk_size or max(LOGITS_ALIVE // width, 1), m)
    chunk = -(-m // -(-m // chunk))  # even chunks: as few, with the least padding

    def cut(x):
        padded = jnp.pad(x, [(0, -m % chunk)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, chunk, *x.shape[1:])

    return cut
