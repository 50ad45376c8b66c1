"""bfloat16 arrays by their bits: where a part of one is read or written, XLA's CPU compiler makes float32 of
the whole, each time.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from deepseek_jax.ops.platform import platform


def bits(array):
    """A bfloat16 array's bits as uint16[...], to read from or write into; any other array as it is. The
    result's `view` makes bfloat16 of them again.
    """
    return array.view(jnp.uint16) if array.dtype == jnp.bfloat16 else array


@jax.custom_jvp
def kept(x):
    """x, named "kept" for a remat policy, and passed on unchanged with its gradient. On a CPU it is x's bits
    that are kept, for a scan over layers writes each layer's part into an array of all.
    """
    return _name(x)


def _name(x):
    if platform() != "cpu":
        return checkpoint_name(x, "kept")
    return checkpoint_name(bits(x), "kept").view(x.dtype)


@kept.defjvp
def _kept_jvp(primals, tangents):
    return _name(*primals), *tangents  # in the open: a remat policy looks for the name
