"""The release's roundings against numpy in float64."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from deepseek_jax.ops.release_rounding import (
    bfloat16_index_scores,
    fp4_index,
    fp8_keys,
    hadamard,
)
from tests.ops.test_attention import normal

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def spread(seed, *shape):
    """float32 of many magnitudes, from 1e-9 to 1e4."""
    return normal(seed, *shape) * np.float32(10.0) ** np.random.default_rng(seed).uniform(
        -9, 4, (*shape[:-1], 1)
    ).astype(np.float32)


def loop_blocks(x, block, largest, least, to_code):
    """Round the last axis of x, block by block, in float64."""
    x = np.asarray(x, np.float64)
    found = np.zeros(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        for at in range(0, x.shape[-1], block):
            part = x[row][at : at + block]
            scale = 2.0 ** np.ceil(np.log2(max(np.abs(part).max(), least) / largest))
            found[row][at : at + block] = [to_code(v / scale) * scale for v in part]
    return found


def to_e4m3(value):
    return float(np.float32(value).astype(ml_dtypes.float8_e4m3fn))


def to_e2m1(value):
    """The nearest of the eight magnitudes; of two that are as near, the one with the even code."""
    distance = np.abs(E2M1 - abs(value))
    nearest = np.flatnonzero(distance == distance.min())
    return np.sign(value) * E2M1[nearest[nearest % 2 == 0][0] if len(nearest) > 1 else nearest[0]]


def sylvester(size):
    """Hadamard's matrix, by its definition."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def test_keys_are_rounded_in_blocks_with_powers_of_two():
    """Oracle: a loop over blocks in float64 with ml_dtypes' E4M3. Rotated numbers stay, and zeros."""
    x = spread(0, 2, 9, 192 + 8)
    x[0, 0, :64] = 0
    x[0, 1, :2] = 448.0, -448.0  # a scale of exactly 1
    x[0, 1, 2:64] = 0.3
    ours = np.asarray(fp8_keys(jnp.asarray(x), 8))
    exact = loop_blocks(x[..., :-8], 64, 448.0, 1e-4, to_e4m3)
    np.testing.assert_array_equal(ours[..., :-8], exact.astype(np.float32))
    np.testing.assert_array_equal(ours[..., -8:], x[..., -8:])
    error = np.abs(ours - x).max(-1) / np.abs(x).max(-1)
    assert error.max() > 0.01
    assert fp8_keys(jnp.asarray(x, jnp.bfloat16), 8).dtype == jnp.bfloat16


def test_the_rotation_is_hadamards_matrix():
    """Oracle: the matrix by its definition. float32 sums of 128 numbers."""
    x = normal(1, 3, 128)
    np.testing.assert_allclose(hadamard(jnp.asarray(x)), x @ sylvester(128), atol=1e-5)


@pytest.mark.parametrize("size", [32, 128])
def test_index_operands_are_rotated_and_rounded_to_e2m1(size):
    """Oracle: pairs side by side, Hadamard's matrix and a loop over blocks, in float64. Float32 of
    the rotation may move a number across the border of two codes: one in a thousand.
    """
    x = spread(2, 4, 25, size)
    rotary = size // 2
    order = np.arange(size)
    order[size - rotary :: 2] = np.arange(size - rotary, size - rotary // 2)
    order[size - rotary + 1 :: 2] = np.arange(size - rotary // 2, size)
    mixed = (x[..., order].astype(np.float64) @ sylvester(size) * size**-0.5).astype(np.float32)
    exact = loop_blocks(mixed, 32, 6.0, 6 * 2.0**-126, to_e2m1)
    ours = np.asarray(fp4_index(jnp.asarray(x), rotary))
    differs = ours != exact.astype(np.float32)
    assert differs.mean() < 1e-3
    assert len(np.unique(np.abs(ours[0, 0]))) <= size // 32 * 8


def test_ties_go_to_the_even_code():
    """Oracle: by hand: halfway between two magnitudes, in blocks whose scale is 1. 64 numbers, because the
    matrix over 8 is its own inverse without rounding.
    """
    halves = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    even = np.float32([0, 1, 1, 2, 2, 4, 4, 6])
    block, exact = (np.concatenate([x, -x, x, -x] * 2) for x in (halves, even))
    x = (block @ sylvester(64) / 8).astype(np.float32)
    np.testing.assert_array_equal(fp4_index(jnp.asarray(x), 0), exact)


def test_index_scores_are_products_and_sums_in_bfloat16():
    """Oracle: a numpy loop that rounds the product, the weight, their product and the sum to bfloat16."""

    def rounded(x):
        return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)

    q, k, w = normal(0, 2, 5, 4, 8), normal(1, 2, 3, 8), normal(2, 2, 5, 4)
    exact = np.zeros((2, 5, 3))
    for row, t, s in np.ndindex(exact.shape):
        products = rounded([rounded(q[row, t, j]) @ rounded(k[row, s]) for j in range(4)])
        weights = rounded(rounded(w[row, t]) * rounded(32**-0.5))
        exact[row, t, s] = rounded(rounded(weights * np.maximum(products, 0)).sum())
    ours = bfloat16_index_scores(*map(jnp.asarray, (q, k, w)))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, rtol=2**-8)
    assert (np.asarray(ours) == exact).mean() > 0.9


@pytest.mark.parametrize("function", [fp8_keys, fp4_index])
def test_a_gradient_is_refused(function):
    """Oracle: the message names the field; without a gradient the function runs."""
    x = jnp.asarray(normal(0, 2, 64 + 64))
    with pytest.raises(ValueError, match="set release_rounding to False"):
        jax.grad(lambda x: function(x, 64).sum())(x)
    assert function(jax.lax.stop_gradient(x), 64).shape == x.shape
