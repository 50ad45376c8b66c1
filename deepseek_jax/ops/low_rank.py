"""The low-rank change of a frozen weight, as the product of two thin matrices that learn.

arXiv:2106.09685.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.platform import precision_of


def low_rank(a, b, *, of_experts: bool = False):
    """Multiply a [inputs... r] by b [r outputs...]: float32[inputs... outputs...].

    The product always has a batch axis. The backward pass therefore computes it again even if
    config.remat is "dots": saved, the products of all layers together would be as large as the
    model.

    Args:
        of_experts: a, b and the result have a leading axis of experts.
    """
    if not of_experts:
        return low_rank(a[None], b[None], of_experts=True)[0]
    contracted, batch = ((a.ndim - 1,), (1,)), ((0,), (0,))
    return jax.lax.dot_general(
        a,
        b,
        (contracted, batch),
        precision=precision_of(a),
        preferred_element_type=jnp.float32,
    )
