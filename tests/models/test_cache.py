"""Writing a token into the decoding caches."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.cache import CacheWrite


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_write_changes_one_index_and_no_bit_elsewhere(dtype):
    """Oracle: a numpy assignment; NaN, infinity and a subnormal keep their bits."""
    rng = np.random.default_rng(0)
    cache, entry = (rng.normal(size=shape).astype(dtype) for shape in ((6, 5, 3), (6, 1, 3)))
    cache.flat[:3] = [np.nan, np.inf, 1e-39]
    expected = cache.copy()
    expected[:, 3:4] = entry
    write = CacheWrite(jnp.int32(3), jnp.ones((2, 5), bool))
    written = np.asarray(write(jnp.asarray(cache), jnp.asarray(entry)))
    np.testing.assert_array_equal(written.view(np.uint8), expected.view(np.uint8))
