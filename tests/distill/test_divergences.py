"""Divergences of two distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.distill.divergences import (
    check_divergence,
    divergence_from_logits,
    divergence_from_logprobs,
)
from deepseek_jax.ops.vocabulary import COLUMNS

ALL = [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]


def random_logprobs(rows=50, v=17, scale=3.0, seed=0):
    """(teacher's, student's) log-probabilities, float64[rows v]."""
    logits = np.random.default_rng(seed).normal(size=(2, rows, v)) * scale
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def loop_jsd(logp, logq, beta):
    """Generalised Jensen-Shannon divergence of one row, by the definition, in float64."""
    total = 0.0
    for p, q in zip(np.exp(logp), np.exp(logq), strict=True):
        m = beta * p + (1 - beta) * q
        total += beta * p * np.log(p / m) + (1 - beta) * q * np.log(q / m)
    return total


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_kl_and_its_gradient_are_torchs(divergence):
    """Oracle: torch.nn.functional.kl_div(input, target) = KL(target || input) and autograd, in float64;
    1e-5 is float32 rounding on values up to 20.
    """
    logp, logq = random_logprobs()

    def ours(logq):
        return divergence_from_logprobs(jnp.float32(logp), logq, divergence=divergence)

    teacher, student = torch.tensor(logp), torch.tensor(logq, requires_grad=True)
    pair = (student, teacher) if divergence == "forward_kl" else (teacher, student)
    theirs = torch.nn.functional.kl_div(*pair, reduction="none", log_target=True).sum(-1)
    theirs.sum().backward()
    np.testing.assert_allclose(ours(jnp.float32(logq)), theirs.detach(), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda q: ours(q).sum())(jnp.float32(logq))
    np.testing.assert_allclose(gradient, student.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("v, shift", [(17, 0.0), (17, 50.0), (2 * COLUMNS + 3, 0.0)])
@pytest.mark.parametrize("divergence, beta", ALL)
def test_a_divergence_from_logits_is_that_of_their_softmaxes(
    divergence, beta, v, shift, temperature
):
    """Oracle: torch's log_softmax, kl_div and autograd, in float64; the student's logits may all lie `shift`
    higher. 3e-5: float32 rounding of values up to 20 and of the shift, which a temperature below 1 enlarges.
    """
    p, q = np.random.default_rng(2).normal(size=(2, 50, v)) * 3
    student = torch.tensor(q, requires_grad=True)
    logp, logq = (torch.log_softmax(x / temperature, -1) for x in (torch.tensor(p), student))
    if divergence == "jsd":
        logm = torch.logaddexp(logp + np.log(beta), logq + np.log(1 - beta))
        halves = (beta, logm, logp), (1 - beta, logm, logq)
    else:
        halves = ((1.0, logq, logp) if divergence == "forward_kl" else (1.0, logp, logq),)
    kl_div = torch.nn.functional.kl_div
    theirs = sum(share * kl_div(a, b, reduction="none", log_target=True) for share, a, b in halves)
    theirs.sum().backward()

    def ours(q):
        kind = dict(divergence=divergence, temperature=temperature, beta=beta)
        return divergence_from_logits(jnp.float32(p), q, **kind)

    q = jnp.float32(q) + shift
    near = dict(rtol=1e-5, atol=3e-5 / temperature)
    np.testing.assert_allclose(ours(q), theirs.sum(-1).detach(), **near)
    gradient = jax.grad(lambda q: ours(q).sum())(q)
    np.testing.assert_allclose(gradient, student.grad, **near)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_cpu_writes_no_exponentials_of_a_kl_out(temperature):
    """Oracle: the compiler's temporary bytes: under a quarter of what one array of exponentials takes, where
    a KL of two log-softmaxes takes as much as two.
    """
    m, v = 64, 16 * COLUMNS
    logits = [jax.ShapeDtypeStruct((m, v), jnp.float32)] * 2

    def usual(p, q):
        logp, logq = (jax.nn.log_softmax(x / temperature) for x in (p, q))
        return divergence_from_logprobs(logp, logq, divergence="forward_kl")

    def ours(p, q):
        return divergence_from_logits(p, q, divergence="forward_kl", temperature=temperature)

    usual, ours = (
        jax.jit(function).lower(*logits).compile().memory_analysis().temp_size_in_bytes
        for function in (usual, ours)
    )
    assert ours < m * v * 4 / 4 and 2 * m * v * 4 <= usual


@pytest.mark.parametrize("beta", [0.02, 0.5, 0.7])
def test_jsd_is_the_definition(beta):
    """Oracle: a float64 loop over rows and tokens; 1e-5 is float32 rounding."""
    logp, logq = random_logprobs()
    wanted = [loop_jsd(*rows, beta) for rows in zip(logp, logq, strict=True)]
    found = divergence_from_logprobs(
        jnp.float32(logp), jnp.float32(logq), divergence="jsd", beta=beta
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_jsd_at_one_half_is_symmetric_and_at_most_log_two():
    """Oracle: both facts by hand; disjoint distributions (logits 60 apart) reach log 2. 1e-6: rounding."""
    logp, logq = jnp.float32(random_logprobs(scale=10.0))
    there = divergence_from_logprobs(logp, logq, divergence="jsd", beta=0.5)
    back = divergence_from_logprobs(logq, logp, divergence="jsd", beta=0.5)
    np.testing.assert_allclose(there, back, atol=1e-6)
    assert (there <= np.log(2) + 1e-6).all()
    far = jax.nn.log_softmax(jnp.array([60.0, 0.0]))
    apart = divergence_from_logprobs(far, far[::-1], divergence="jsd", beta=0.5)
    np.testing.assert_allclose(apart, np.log(2), rtol=1e-6)


@pytest.mark.parametrize("beta, limit", [(1e-3, "forward_kl"), (1 - 1e-3, "reverse_kl")])
def test_jsd_goes_over_into_either_kl(beta, limit):
    """Oracle: our own KL, itself held to torch, is JSD / beta or JSD / (1 - beta) in the limit. What is left
    at 1e-3 is of that relative order times the ratios of the two, here up to e^3: 2%.
    """
    logp, logq = jnp.float32(random_logprobs(scale=0.5))
    jsd = divergence_from_logprobs(logp, logq, divergence="jsd", beta=beta) / min(beta, 1 - beta)
    kl = divergence_from_logprobs(logp, logq, divergence=limit)
    np.testing.assert_allclose(jsd, kl, rtol=2e-2)


@pytest.mark.parametrize("divergence, beta", ALL)
def test_equal_distributions_are_at_distance_and_gradient_zero(divergence, beta):
    """Oracle: 0, and for the gradient in logits 0 up to 1e-6 of rounding."""
    logits = jnp.float32(np.random.default_rng(1).normal(size=(20, 9)) * 5)

    def value(student):
        return divergence_from_logits(logits, student, divergence=divergence, beta=beta).sum()

    found, gradient = jax.value_and_grad(value)(logits)
    np.testing.assert_allclose(found, 0, atol=2e-6)  # logaddexp rounds once in each of 180 entries
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize(
    "settings, field",
    [
        (dict(divergence="kl"), "config.loss.divergence"),
        (dict(divergence="jsd"), "config.loss.beta"),
        (dict(divergence="jsd", beta=1.0), "config.loss.beta"),
        (dict(divergence="jsd", beta=0.0), "config.loss.beta"),
        (dict(divergence="reverse_kl", beta=0.5), "config.loss.beta"),
        (dict(divergence="forward_kl", temperature=0.0), "config.loss.temperature"),
        (dict(divergence="forward_kl", temperature=float("nan")), "config.loss.temperature"),
        (dict(divergence="forward_kl", temperature=float("inf")), "config.loss.temperature"),
    ],
)
def test_settings_that_do_not_fit_name_their_field(settings, field):
    """Oracle: the field, by hand."""
    with pytest.raises(ValueError, match=field):
        check_divergence(**settings)
