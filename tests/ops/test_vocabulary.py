"""Softmaxes and sums over a vocabulary against numpy, and that what is added up is not written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.vocabulary import (
    COLUMNS,
    largest,
    log_softmax,
    log_total,
    vocabulary_sum,
)

M, V = 23, 37
SIZES = [V, 2 * COLUMNS - 1, 2 * COLUMNS, 2 * COLUMNS + 1, 3 * COLUMNS - 5]


@pytest.mark.parametrize("size", [1, 100])
def test_log_softmax_and_its_gradient_are_the_exact_ones(size):
    """Oracle: numpy in float64, with the gradient by hand, w - softmax * sum(w) for weights w. float32
    rounds at the largest logit, which is 3 to 4 times `size`.
    """
    rng = np.random.default_rng(0)
    logits, weights = size * rng.normal(size=(M, V)), rng.normal(size=(M, V))
    shifted = logits - logits.max(-1, keepdims=True)
    exact = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    found, pull = jax.vjp(log_softmax, jnp.float32(logits))
    np.testing.assert_allclose(found, exact, atol=3e-6 * size)
    gradient = weights - np.exp(exact) * weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(pull(jnp.float32(weights))[0], gradient, atol=3e-5 * size)


@pytest.mark.parametrize("place", [0, COLUMNS, -1])
@pytest.mark.parametrize("v", SIZES)
def test_the_largest_is_numpys_wherever_it_stands(v, place):
    """Oracle: numpy's maximum, of negative numbers too, and of rows that hold it twice."""
    logits = -1 - np.random.default_rng(0).random((3, v), np.float32)
    logits[1:, place % v] = -0.5
    logits[2, v // 2] = -0.5
    np.testing.assert_array_equal(largest(jnp.array(logits)), logits.max(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("v", SIZES)
def test_the_total_and_its_gradient_are_the_exact_ones(v, temperature):
    """Oracle: numpy in float64: log of a sum of exponentials, and softmax / temperature as its gradient;
    2e-6 of the total and 2e-5 of the softmax, whose exponents reach 20, is float32 rounding.
    """
    logits = 3 * np.random.default_rng(v).normal(size=(M, v))
    exponents = np.exp(logits / temperature)
    found, pull = jax.vjp(lambda x: log_total(x, temperature), jnp.float32(logits))
    np.testing.assert_allclose(found, np.log(exponents.sum(-1)), rtol=2e-6)
    exact = exponents / exponents.sum(-1, keepdims=True) / temperature
    np.testing.assert_allclose(pull(jnp.ones(M))[0], exact, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("v", SIZES)
def test_a_sum_takes_several_arrays_and_rows_and_what_is_zero(v):
    """Oracle: numpy in float64, of terms that are mostly zero or cancel; 1e-6 of what is added up."""
    rng = np.random.default_rng(1)
    x, is_in, row = rng.normal(size=(M, v)), rng.random((M, v)) < 0.01, rng.normal(size=(M, 1))

    def of(arrays, rows):
        (x, is_in), (row, scale) = arrays, rows
        return jnp.where(is_in, (x - row) * scale, 0.0)

    found = vocabulary_sum(of, (jnp.float32(x), jnp.array(is_in)), (jnp.float32(row), 2.0))
    terms = np.where(is_in, 2 * (x - row), 0.0)
    np.testing.assert_allclose(found, terms.sum(-1), atol=1e-6 * np.abs(terms).sum(-1).max())


def test_a_nan_is_not_lost():
    """Oracle: by hand: a sum with a NaN is NaN, in the columns and behind them."""
    for place in (5, 2 * COLUMNS):
        logits = jnp.zeros((1, 2 * COLUMNS + 1)).at[0, place].set(jnp.nan)
        assert jnp.isnan(log_total(logits)).all()
