"""Saving for the backward pass: a scan over layers writes each layer's part into an array of all of them."""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name

from deepseek_jax.ops.cpu.bits import bits


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def save_bits(x, name):
    """x, of which the bits are saved by this name."""
    return _named(x, name)


def _named(x, name):
    return checkpoint_name(bits(x), name).view(x.dtype)


@save_bits.defjvp
def _save_bits_jvp(name, primals, tangents):
    return _named(*primals, name), *tangents  # in the open: a remat policy looks for the name
