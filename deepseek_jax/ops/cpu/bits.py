"""The bits of bfloat16 arrays, for access to a part of an array.

To access a part of a bfloat16 array, XLA's CPU compiler converts the whole array to float32.

Tests: tests/ops/cpu/test_remat.py.
"""

import jax.numpy as jnp


def bits(array):
    """Return a bfloat16 array's bits as uint16[...], and any other array unchanged.

    Read from the result or write into it. Its `view` turns the bits into bfloat16 again.
    """
    return array.view(jnp.uint16) if array.dtype == jnp.bfloat16 else array
