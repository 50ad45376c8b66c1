"""Manifold-constrained hyper-connections: residual streams that every sublayer mixes anew.

arXiv:2512.24880; arXiv:2606.19348, section 2.2. The coefficients are float32 in every dtype.

More dimension letters: z a stream that is read, o a stream that is written.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.ops.dot import dot


class Mixing(NamedTuple):
    """How one sublayer reads and writes the streams of each token.

    Attributes:
        read: float32[b t z], the weight of each stream in the sublayer's input.
        write: float32[b t o], the weight of the sublayer's output in each stream.
        carry: float32[b t z o], the part of stream z that goes on in stream o. Its rows and columns
            sum to 1, up to the iterations of `sinkhorn`.
    """

    read: jax.Array
    write: jax.Array
    carry: jax.Array


def coefficient_logits(streams_btzd, w_zdx, eps):
    """Project all streams of a token, normed together, to logits: float32[b t x].

    Args:
        streams_btzd: Any dtype.
        w_zdx: float32.
        eps: The norm's epsilon. The norm has no scale.
    """
    streams_btzd = streams_btzd.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(streams_btzd), axis=(-2, -1), keepdims=True)
    return dot("btzd,zdx->btx", streams_btzd * jax.lax.rsqrt(mean_square + eps), w_zdx)


def mixing(logits_btx, base_x, scale, *, iterations: int, eps: float) -> Mixing:
    """Turn logits into one sublayer's Mixing (arXiv:2512.24880, section 4).

    Args:
        logits_btx: float32, from `coefficient_logits`: z for read, z for write, then z rows of o for
            carry.
        base_x: float32, added to the scaled logits.
        scale: float32[3], the factors of the logits of read, write and carry.
        iterations: See `sinkhorn`.
        eps: Added to read, and in `sinkhorn`; write has none.
    """
    # x = 2 z + z^2 = (z + 1)^2 - 1
    z = round((logits_btx.shape[-1] + 1) ** 0.5) - 1
    parts = jnp.split(logits_btx, [z, 2 * z], axis=-1)
    bases = jnp.split(base_x, [z, 2 * z])
    read, write, carry = (
        part * factor + base for part, factor, base in zip(parts, scale, bases, strict=True)
    )
    carry_btzo = carry.reshape(*carry.shape[:-1], z, z)
    return Mixing(
        jax.nn.sigmoid(read) + eps, 2 * jax.nn.sigmoid(write), sinkhorn(carry_btzo, iterations, eps)
    )


@functools.partial(jax.checkpoint, static_argnums=(1, 2))
def sinkhorn(logits_btzo, iterations: int, eps: float):
    """Return nearly doubly stochastic matrices: float32[b t z o].

    The first iteration is a softmax over o and a division by the sums of columns. Every other one
    divides by the sums of rows, then by the sums of columns. eps is added to the softmax and to each
    sum. The backward pass repeats the iterations, which would keep more numbers than the streams.
    """

    def divide_columns(c_btzo):
        return c_btzo / (c_btzo.sum(-2, keepdims=True) + eps)

    def iterate(c_btzo, _):
        return divide_columns(c_btzo / (c_btzo.sum(-1, keepdims=True) + eps)), None

    first_btzo = divide_columns(jax.nn.softmax(logits_btzo, axis=-1) + eps)
    return jax.lax.scan(iterate, first_btzo, length=iterations - 1)[0]


def read(streams_btzd, weights_btz):
    """Sum the streams, each times its weight: [b t d] in the streams' dtype."""
    total_btd = dot("btz,btzd->btd", weights_btz, streams_btzd)
    return total_btd.astype(streams_btzd.dtype)


def write(streams_btzd, output_btd, mixing: Mixing):
    """Carry the streams on and add a sublayer's output to each: [b t o d] in the streams' dtype."""
    # The sum is over the first stream axis of carry, which is not symmetric
    carried_btod = dot("btzo,btzd->btod", mixing.carry, streams_btzd)
    added_btod = mixing.write[..., None] * output_btd[:, :, None]
    return (carried_btod + added_btod).astype(streams_btzd.dtype)
