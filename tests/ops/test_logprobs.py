"""Chunked log-probabilities against the full log-softmax, and their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.logprobs import token_logprobs
from deepseek_jax.ops.platform import SIZES
from tests.costs.products import matmul_flops
from tests.quick import others_slow

M, D, V = 23, 8, 37
LARGE = 12283


def inputs(m=M, d=D, v=V):
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(m, d)), rng.normal(size=(v, d))
    return jnp.float32(hidden), jnp.float32(head), jnp.asarray(rng.integers(0, v, m), jnp.int32)


@pytest.mark.parametrize("chunk_size", others_slow([None, 1, 4, 23, 100], None, 4, 100))
@pytest.mark.parametrize(
    "v, temperature", others_slow([(V, 1.0), (V, 0.6), (LARGE, 0.6)], (V, 0.6), (LARGE, 0.6))
)
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
        *(jax.jit(jax.grad(f, (0, 1)))(hidden, head) for f in (chunked, full)), strict=True
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


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_distribution_over_candidates_is_that_of_their_softmax(chunk_size):
    """Oracle: each row's own candidates in numpy, in float64; the gradient of a log-probability by hand,
    (one_hot - softmax) / temperature. Entropy and temperature have none, and a row without any candidate
    makes no NaN.
    """
    hidden, head, _ = inputs()
    rng, probe = np.random.default_rng(1), np.linspace(-1, 1, M) * (np.arange(M) < M - 1)
    candidates = np.stack([rng.permutation(V)[:5] for _ in range(M)]).astype(np.int32)
    candidates[0] = 3, 1, 0, 2, 4
    candidates[2, 3:] = candidates[-1] = -1
    targets = np.maximum(candidates[:, 0], 0)
    exact, d_logits = np.zeros((2, M)), np.zeros((M, V))
    for row, (target, own) in enumerate(zip(targets[:-1], candidates, strict=False)):
        own = own[own >= 0]
        logits = np.asarray(hidden[row], float) @ np.asarray(head, float)[own].T / 0.7
        logp = logits - np.log(np.exp(logits).sum())
        exact[:, row] = logp[0], -(np.exp(logp) * logp).sum()
        d_logits[row, own] = -np.exp(logp) * probe[row] / 0.7
        d_logits[row, target] += probe[row] / 0.7

    def value(hidden, head, temperature):
        found = token_logprobs(
            hidden, head, (targets, candidates), temperature, chunk_size=chunk_size
        )
        return (found[0] * probe).sum() + found[1].sum(), found

    grads, found = jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(hidden, head, 0.7)
    np.testing.assert_allclose(np.stack(found)[:, :-1], exact[:, :-1], atol=1e-5)
    wanted = d_logits @ np.asarray(head, float), d_logits.T @ np.asarray(hidden, float), 0
    for ours, theirs in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "m, chunk_size, alive, chunks",
    [(10, 6, 1, (2, 5)), (23, 8, 1, (3, 8)), (4, 9, 1, (1, 4)), (7, None, 3 * V - 1, (4, 2))]
    + [(3, None, 1, (3, 1))],
)
def test_chunks_are_few_and_even(monkeypatch, m, chunk_size, alive, chunks):
    """Oracle: by hand: as few chunks as chunk_size (or the logits alive, at least of one token) allows, the
    tokens spread evenly over them.
    """
    monkeypatch.setitem(SIZES, "logits_alive", {"any": alive})
    program = jax.make_jaxpr(lambda *a: token_logprobs(*a, chunk_size=chunk_size))(*inputs(m))
    assert f"f32[{chunks[0]},{chunks[1]},{D}]" in str(program)


@pytest.mark.parametrize("chunk_size, products", [(M, 3), (M // 2 + 1, 4), (1, 4)])
def test_logits_are_computed_again_for_the_gradient_of_several_chunks_alone(chunk_size, products):
    """Oracle: the program's products of all tokens (one of padding too) with the head, by hand."""
    hidden, head, targets = inputs()

    def value(hidden, head):
        return token_logprobs(hidden, head, targets, chunk_size=chunk_size)[0].sum()

    rows = M + (chunk_size == M // 2 + 1)
    program = jax.make_jaxpr(jax.grad(value, (0, 1)))(hidden, head)
    assert matmul_flops(program) == products * 2 * rows * D * V


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
