"""bfloat16 by its bits: XLA's CPU compiler makes float32 of a whole array to read or write a part of it."""

import jax.numpy as jnp


def bits(array):
    """A bfloat16 array's bits as uint16[...], to read from or write into; any other array as it is. The
    result's `view` makes bfloat16 of them again.
    """
    return array.view(jnp.uint16) if array.dtype == jnp.bfloat16 else array
