"""Rows a few at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.distill.chunks import map_chunks
from deepseek_jax.ops.logprobs import LOGITS_ALIVE


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 10])
def test_trees_of_rows_come_back_in_order(chunk_size):
    """Oracle: the same arithmetic on whole arrays, exactly; 7 rows in chunks of 3 need filling."""
    a, b = jnp.arange(7.0), jnp.arange(14, dtype=jnp.int32).reshape(7, 2)

    def of_chunk(arrays):
        return {"twice": 2 * arrays["a"], "sum": (arrays["b"].sum(-1), arrays["b"])}

    found = map_chunks(of_chunk, dict(a=a, b=b), width=5, chunk_size=chunk_size)
    np.testing.assert_array_equal(found["twice"], 2 * a)
    np.testing.assert_array_equal(found["sum"][0], b.sum(-1))
    np.testing.assert_array_equal(found["sum"][1], b)


def test_the_default_chunk_keeps_the_numbers_alive_bounded():
    """Oracle: the rows that of_chunk sees, by hand: 100 rows of a 40th of the limit make 3 chunks of 34."""
    seen = []

    def of_chunk(x):
        seen.append(len(x))
        return x

    map_chunks(of_chunk, jnp.zeros(100), width=LOGITS_ALIVE // 40)
    assert set(seen) == {34}
