"""Pick one token of each row, also from rows that are split over devices."""

import jax.numpy as jnp


def token_at(x_btd, index_b):
    """Return x[b, index[b]] of each row: [b t d], int32[b] -> [b d].

    This is a mask and a sum, not a gather. A gather's gradient is a scatter, and XLA's partitioner
    (JAX 0.10.2) loses rows of a scatter if it has split the operand unevenly over devices. The
    gradient would be wrong, without an error.
    """
    is_it_bt = jnp.arange(x_btd.shape[1]) == index_b[:, None]
    return jnp.where(is_it_bt[..., None], x_btd, 0).sum(1)
