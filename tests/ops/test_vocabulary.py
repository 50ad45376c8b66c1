"""Softmaxes over a vocabulary against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.vocabulary import log_softmax, log_total

M, V = 23, 37


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


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_total_and_its_gradient_are_the_exact_ones(temperature):
    """Oracle: numpy in float64: log of a sum of exponentials, and softmax / temperature as its gradient;
    2e-6 of the total and 2e-5 of the softmax, whose exponents reach 20, is float32 rounding.
    """
    logits = 3 * np.random.default_rng(V).normal(size=(M, 8191))
    exponents = np.exp(logits / temperature)
    found, pull = jax.vjp(lambda x: log_total(x, temperature), jnp.float32(logits))
    np.testing.assert_allclose(found, np.log(exponents.sum(-1)), rtol=2e-6)
    exact = exponents / exponents.sum(-1, keepdims=True) / temperature
    np.testing.assert_allclose(pull(jnp.ones(M))[0], exact, rtol=2e-5, atol=1e-9)


def test_a_nan_is_not_lost():
    """Oracle: by hand: a total with a NaN is NaN."""
    assert jnp.isnan(log_total(jnp.zeros((1, 9)).at[0, 5].set(jnp.nan))).all()


def test_a_total_without_a_temperature_is_at_one():
    """Oracle: by hand: four exponentials of 2."""
    np.testing.assert_allclose(log_total(jnp.full((1, 4), 2.0)), 2 + np.log(4), rtol=1e-6)
