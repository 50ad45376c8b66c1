"""Chunked log-probabilities against the full log-softmax, and their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.logprobs import token_logprobs

M, D, V = 23, 8, 37
LARGE = 12283


def inputs(m=M, d=D, v=V):
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(m, d)), rng.normal(size=(v, d))
    return jnp.float32(hidden), jnp.float32(head), jnp.asarray(rng.integers(0, v, m), jnp.int32)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 23, 100])
@pytest.mark.parametrize("v, temperature", [(V, 1.0), (V, 0.6), (LARGE, 0.6)])
def test_logprobs_and_entropy_are_those_of_the_full_softmax(chunk_size, v, temperature):
    """Oracle: numpy's log-softmax over all logits, in float64; 1e-5 is float32 rounding, and 1e-4 that of a
    sum of 12,283 terms, which some compilers add one after another.
    """
    atol = 1e-5 if v == V else 1e-4
    hidden, head, targets = inputs(v=v)
    logits = np.asarray(hidden, float) @ np.asarray(head, float).T / temperature
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    logprobs, entropy = token_logprobs(
        hidden, head, targets, temperature=temperature, chunk_size=chunk_size
    )
    np.testing.assert_allclose(logprobs, logp[np.arange(M), targets], atol=atol)
    np.testing.assert_allclose(entropy, -(np.exp(logp) * logp).sum(-1), atol=atol)


@pytest.mark.parametrize("v", [V, LARGE])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_gradients_are_those_of_the_full_softmax(chunk_size, v):
    """Oracle: autodiff of jax.nn.log_softmax over all logits; 1e-5 is the rounding of float32, of 1 and of a
    larger value.
    """
    hidden, head, targets = inputs(v=v)
    probe = jnp.linspace(-1, 1, M)

    def chunked(hidden, head):
        return (
            token_logprobs(hidden, head, targets, temperature=0.6, chunk_size=chunk_size)[0] * probe
        ).sum()

    def full(hidden, head):
        return (jax.nn.log_softmax(hidden @ head.T / 0.6)[jnp.arange(M), targets] * probe).sum()

    for ours, theirs in zip(
        *(jax.grad(f, (0, 1))(hidden, head) for f in (chunked, full)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_entropy_carries_no_gradient():
    """Oracle: zero."""
    hidden, head, targets = inputs()
    grads = jax.grad(lambda *a: token_logprobs(*a, targets)[1].sum(), (0, 1))(hidden, head)
    assert all((g == 0).all() for g in grads)


def test_logits_far_apart_stay_finite():
    """Oracle: by hand: the certain token has log-probability and entropy 0, the other -2000."""
    head = jnp.array([[1000.0], [-1000.0]])
    logprobs, entropy = token_logprobs(jnp.ones((2, 1)), head, jnp.array([0, 1]))
    np.testing.assert_allclose(logprobs, [0, -2000])
    np.testing.assert_allclose(entropy, 0, atol=1e-6)


@pytest.mark.parametrize("of", ["value", "gradient"])
def test_the_tokens_by_vocabulary_array_never_lives(of):
    """Oracle: the compiler's temporary bytes: under a tenth of the 16 MiB that [m v] float32 needs."""
    m, v = 1024, 4096

    def value(hidden, head, targets):
        return token_logprobs(hidden, head, targets, chunk_size=32)[0].sum()

    function = value if of == "value" else jax.grad(value, (0, 1))
    memory = jax.jit(function).lower(*inputs(m, D, v)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < m * v * 4 / 10


def test_the_default_chunk_bounds_the_logits_alive():
    """Oracle: the compiler's temporary bytes at 2**26 logits: a chunk has a quarter of them.

    Under three quarters, for XLA may hold a chunk's logits and their exponentials at once.
    """
    m, v = 8192, 8192

    def value(hidden, head, targets):
        return token_logprobs(hidden, head, targets)[0].sum()

    lowered = jax.jit(value).lower(
        *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs(m, 1, v))
    )
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 0.75 * m * v * 4
