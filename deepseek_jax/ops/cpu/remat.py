"""Values saved for the backward pass as bits, for a CPU.

A scan over layers writes each layer's part into one array for all layers. With bits, XLA's CPU
compiler does not convert the whole array for each part (see bits.py).
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name

from deepseek_jax.ops.cpu.bits import bits


# Integers have no gradient: without this rule, the gradient would end at the bits
@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def save_bits(x, name):
    """Return x, with its bits saved under this name."""
    return _named(x, name)


def _named(x, name):
    return checkpoint_name(bits(x), name).view(x.dtype)


@save_bits.defjvp
def _save_bits_jvp(name, primals, tangents):
    # Not a call of save_bits: a remat policy sees no name inside a custom derivative, and would
    # recompute x
    (x,), (tangent,) = primals, tangents
    return _named(x, name), tangent
