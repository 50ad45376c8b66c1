"""A weight whose change has low rank: a frozen matrix, and two thin ones that learn (arXiv:2106.09685)."""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.platform import precision_of


def low_rank(a, b, *, of_experts: bool = False):
    """The product of a[inputs... r] and b[r outputs...]: float32[inputs... outputs...].

    of_experts: a and b have a leading axis of experts, and so has the result. Products with a batch axis are
    computed again in the backward pass even where config.remat is "dots": saved, those of all layers
    together would be as large as the model.
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
