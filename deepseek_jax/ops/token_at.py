"""One token of each row."""

import jax.numpy as jnp


def token_at(x_btd, index_b):
    """x[b, index[b]] of each row: [b t d], int32[b] -> [b d].

    A mask and a sum, no gather. A gather's gradient is a scatter, and XLA's partitioner (JAX 0.10.2) loses
    rows of a scatter whose operand it has split unevenly over devices: a wrong gradient, in silence.
    """
    is_it_bt = jnp.arange(x_btd.shape[1]) == index_b[:, None]
    return jnp.where(is_it_bt[..., None], x_btd, 0).sum(1)
