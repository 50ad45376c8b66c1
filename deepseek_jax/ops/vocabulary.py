"""Softmaxes and sums over a vocabulary, the last axis."""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.ops.platform import platform

COLUMNS = 4096  # that a CPU adds up at once: few enough for its cache, enough for its vectors


def log_softmax(logits):
    """float32[... v] -> float32[... v], nats: jax.nn.log_softmax up to the largest logit's rounding.

    Over a product's logits and with its gradient it takes a CPU a fifth less time: that one's steps XLA's
    compiler fuses into the product, where they run slower, with constants copied to the size of all logits.
    """
    return logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def vocabulary_sum(of, arrays, rows=()):
    """The sum over the last axis of what `of` makes, which is never written out: float32[...].

    of(arrays, rows) -> float32[... v], each element from the same one of arrays [... v] and from rows, each
    [... 1] or a number: tuples of all that it may know. It is computed anew for the gradient.
    """
    v = arrays[0].shape[-1]
    if not _in_columns(v):
        return of(arrays, rows).sum(-1)
    # Else exponentials that this sum shares with one of other arrays would be written out for both
    arrays = jax.lax.optimization_barrier(arrays)
    blocks = tuple(_columns(x) for x in arrays)
    terms = of(blocks, tuple(jnp.asarray(x)[..., None] for x in rows))
    columns = jax.lax.reduce(terms, jnp.float32(0), _add, (terms.ndim - 2,))
    rest = of(tuple(x[..., v - v % COLUMNS :] for x in arrays), rows)
    return columns.sum(-1) + rest.sum(-1)


@vocabulary_sum.defjvp
def _vocabulary_sum_jvp(of, primals, tangents):
    _, moved = jax.jvp(of, primals, tangents)
    return vocabulary_sum(of, *primals), moved.sum(-1)


def largest(logits):
    """The largest of each row, float32[... 1], without gradient: what exponents are taken from."""
    logits = jax.lax.stop_gradient(logits)
    v = logits.shape[-1]
    if not _in_columns(v):
        return logits.max(-1, keepdims=True)
    most = _columns(logits).max(-2)
    if v % COLUMNS:
        rest = logits[..., v - v % COLUMNS :].max(-1, keepdims=True)
        most = jnp.maximum(most, rest)
    return jax.lax.reduce(most, -jnp.float32(jnp.inf), _larger, (most.ndim - 1,))[..., None]


def exponential(logits, most, temperature=1.0):
    """exp((logits - most) / temperature), most being their largest. The temperature is in the exponent alone:
    divided by it first, logits would be written out once more.
    """
    return jnp.exp((logits - most) * (1 / temperature))


def exponential_sum(logits, most, temperature=1.0):
    """The sum of what `exponential` is of: float32[... v], float32[... 1] -> float32[...]."""
    return vocabulary_sum(lambda x, rows: exponential(*x, *rows), (logits,), (most, temperature))


def log_total(logits, temperature=1.0):
    """log of the sum of exp(logits / temperature): float32[... v] -> float32[...]."""
    most = largest(logits)
    return unshifted_log(exponential_sum(logits, most, temperature), most, temperature)


def unshifted_log(total, most, temperature):
    """log_total, from an exponential_sum float32[...] and what its exponents lack, float32[... 1]."""
    return jnp.log(total) + most[..., 0] / temperature


# XLA's CPU compiler hands a sum or a maximum over a last axis to a library, and with it writes out what goes
# in or what follows, [... v] each time. Over another axis, by functions that it does not know as either, it
# makes one vectorised loop of all: a fifth of the time.
def _in_columns(v):
    return platform() == "cpu" and v >= 2 * COLUMNS


def _columns(x):
    return x[..., : x.shape[-1] // COLUMNS * COLUMNS].reshape(*x.shape[:-1], -1, COLUMNS)


def _add(x, y):
    return jnp.where(y == 0, x, x + y)


def _larger(x, y):
    return jnp.where(x > y, x, y)
