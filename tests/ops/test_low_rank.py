"""The product of two thin matrices against numpy."""

import jax.numpy as jnp
import numpy as np

from deepseek_jax.ops.low_rank import low_rank
from tests.ops.test_attention import normal


def test_the_product_of_experts_is_that_of_each():
    """Oracle: a numpy loop over the experts; a single one has no axis of experts."""
    a, b = normal(0, 3, 5, 4, 2), normal(1, 3, 2, 6)
    exact = np.stack([np.tensordot(x, y, 1) for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(low_rank(a, b, of_experts=True), exact, atol=1e-5)
    np.testing.assert_allclose(low_rank(a[1], b[1]), exact[1], atol=1e-5)


def test_the_product_is_in_float32():
    """Oracle: the dtype, of bfloat16 matrices."""
    a, b = jnp.ones((5, 2), jnp.bfloat16), jnp.ones((2, 6), jnp.bfloat16)
    assert low_rank(a, b).dtype == jnp.float32
