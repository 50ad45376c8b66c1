"""One token of each row."""

import numpy as np

from deepseek_jax.ops.token_at import token_at
from tests.ops.test_attention import normal


def test_a_token_of_each_row_is_the_one_at_its_index():
    """Oracle: numpy's index; sizes that differ, the first token and the last."""
    x, index = normal(0, 3, 4, 5), np.array([3, 0, 2])
    np.testing.assert_array_equal(token_at(x, index), x[np.arange(3), index])
