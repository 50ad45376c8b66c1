"""bfloat16 by its bits: XLA's CPU compiler converts a whole array to float32 to access a part of it."""

import jax.numpy as jnp


def bits(array):
    """A bfloat16 array's bits as uint16[...], to read from or write into; any other array as it is. The
    result's `view` turns them into bfloat16 again.
    """
    return array.view(jnp.uint16) if array.dtype == jnp.bfloat16 else array
