"""Losses of single tokens: divergences of two distributions, and the text's own token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.distill.divergences import (
    check_beta,
    diverge,
    hard_loss,
    jsd,
    soft_loss,
)
from tests.quick import others_slow

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


def torch_divergence(logp, logq, *, divergence, beta=None):
    """D(p, q) by torch.nn.functional.kl_div(input, target) = KL(target || input)."""
    if divergence == "jsd":
        logm = torch.logaddexp(logp + np.log(beta), logq + np.log(1 - beta))
        halves = (beta, logm, logp), (1 - beta, logm, logq)
    else:
        halves = ((1.0, logq, logp) if divergence == "forward_kl" else (1.0, logp, logq),)
    kl_div = torch.nn.functional.kl_div
    parts = (share * kl_div(a, b, reduction="none", log_target=True) for share, a, b in halves)
    return sum(parts).sum(-1)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_kl_and_its_gradient_are_torchs(divergence):
    """Oracle: torch's kl_div of log-probabilities and autograd through a softmax, in float64; 1e-5 is float32
    rounding on values up to 20.
    """
    logp, logq = random_logprobs()
    student = torch.tensor(logq, requires_grad=True)
    theirs = torch_divergence(
        torch.tensor(logp), torch.log_softmax(student, -1), divergence=divergence
    )
    theirs.sum().backward()

    def ours(logq):
        return diverge(jnp.float32(logp), logq, divergence=divergence)

    np.testing.assert_allclose(ours(jnp.float32(logq)), theirs.detach(), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda q: ours(q).sum())(jnp.float32(logq))
    np.testing.assert_allclose(gradient, student.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", others_slow([1.0, 0.7], 0.7))
@pytest.mark.parametrize(
    "v, shift", others_slow([(17, 0.0), (17, 50.0), (8195, 0.0)], (17, 50.0), (8195, 0.0))
)
@pytest.mark.parametrize("divergence, beta", ALL)
def test_a_divergence_of_logits_is_that_of_their_softmaxes(divergence, beta, v, shift, temperature):
    """Oracle: torch's log_softmax, kl_div and autograd, in float64; the student's logits may all lie `shift`
    higher. 3e-5: float32 rounding of values up to 20 and of the shift, which a temperature below 1 enlarges.
    """
    p, q = np.random.default_rng(2).normal(size=(2, 50, v)) * 3
    student, kind = torch.tensor(q, requires_grad=True), dict(divergence=divergence, beta=beta)
    logp, logq = (torch.log_softmax(x / temperature, -1) for x in (torch.tensor(p), student))
    theirs = torch_divergence(logp, logq, **kind)
    theirs.sum().backward()

    def ours(q):
        return diverge(jnp.float32(p), q, temperature, **kind)

    q = jnp.float32(q) + shift
    near = dict(rtol=1e-5, atol=3e-5 / temperature)
    np.testing.assert_allclose(jax.jit(ours)(q), theirs.detach(), **near)
    gradient = jax.jit(jax.grad(lambda q: ours(q).sum()))(q)
    np.testing.assert_allclose(gradient, student.grad, **near)


@pytest.mark.parametrize("offset", others_slow([1e3, -1e5], -1e5))
@pytest.mark.parametrize("divergence, beta", ALL)
def test_an_offset_of_the_logits_costs_no_digits(divergence, beta, offset):
    """Oracle: the same logits without the offset, in multiples of 1/64, so that adding it is exact. 2e-6:
    rounding of the results' sums.
    """
    p, q = np.round(np.random.default_rng(3).normal(size=(2, 50, 129)) * 192) / 64
    kind = dict(divergence=divergence, beta=beta)
    wanted = diverge(jnp.float32(p), jnp.float32(q), **kind)
    for added in ((offset, 0), (0, offset), (offset, offset)):
        moved = [jnp.float32(x + one) for x, one in zip((p, q), added, strict=True)]
        np.testing.assert_allclose(diverge(*moved, **kind), wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("apart", others_slow([0.0, 1e-4, 1e-3], 1e-4))
@pytest.mark.parametrize("temperature", others_slow([1.0, 0.7], 1.0))
@pytest.mark.parametrize("divergence, beta", ALL)
def test_no_divergence_is_negative_near_convergence(divergence, beta, temperature, apart):
    """Oracle: an invariant of divergences; float64 by torch, within 2e-6: rounding of sums over 8195 tokens;
    the gradient of a row whose value rounds to 0 is still there.
    """
    rng = np.random.default_rng(4)
    p = np.float32(rng.normal(size=(50, 8195)) * 3 + 20)
    q = np.float32(p + rng.normal(size=p.shape) * apart)
    kind = dict(divergence=divergence, beta=beta)
    found, pullback = jax.vjp(lambda q: diverge(jnp.array(p), q, temperature, **kind), jnp.array(q))
    assert (found >= 0).all()
    logp, logq = (torch.log_softmax(torch.tensor(x).double() / temperature, -1) for x in (p, q))
    np.testing.assert_allclose(found, torch_divergence(logp, logq, **kind), atol=2e-6)
    (gradient,) = pullback(jnp.ones(len(p)))
    if divergence == "forward_kl" and apart:
        wanted = (logq.exp() - logp.exp()).numpy() / temperature
        np.testing.assert_allclose(gradient, wanted, atol=1e-6 / temperature)
        assert np.abs(gradient).max(1).min() > 0


@pytest.mark.parametrize("beta", [0.02, 0.5, 0.7])
def test_jsd_is_the_definition(beta):
    """Oracle: a float64 loop over rows and tokens; 1e-5 is float32 rounding."""
    logp, logq = random_logprobs()
    wanted = [loop_jsd(*rows, beta) for rows in zip(logp, logq, strict=True)]
    found = jsd(jnp.float32(logp), jnp.float32(logq), beta=beta)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_jsd_at_one_half_is_symmetric_and_at_most_log_two():
    """Oracle: both facts by hand; disjoint distributions (logits 60 apart) reach log 2. 1e-6: rounding."""
    logp, logq = jnp.float32(random_logprobs(scale=10.0))
    there, back = jsd(logp, logq, beta=0.5), jsd(logq, logp, beta=0.5)
    np.testing.assert_allclose(there, back, atol=1e-6)
    assert (there <= np.log(2) + 1e-6).all()
    far = jnp.array([60.0, 0.0])
    np.testing.assert_allclose(jsd(far, far[::-1], beta=0.5), np.log(2), rtol=1e-6)


@pytest.mark.parametrize("beta, limit", [(1e-3, "forward_kl"), (1 - 1e-3, "reverse_kl")])
def test_jsd_goes_over_into_either_kl(beta, limit):
    """Oracle: our KL, tested against torch: the limit of JSD / beta and of JSD / (1 - beta). At 1e-3 the
    relative error is 1e-3 times the probability ratios, here up to e^3: 2%.
    """
    logp, logq = jnp.float32(random_logprobs(scale=0.5))
    small = jsd(logp, logq, beta=beta) / min(beta, 1 - beta)
    np.testing.assert_allclose(small, diverge(logp, logq, divergence=limit), rtol=2e-2)


@pytest.mark.parametrize("divergence, beta", ALL)
def test_equal_distributions_are_at_distance_and_gradient_zero(divergence, beta):
    """Oracle: 0, and for the gradient in logits 0 up to 1e-6 of rounding."""
    logits = jnp.float32(np.random.default_rng(1).normal(size=(20, 9)) * 5)

    def value(student):
        return diverge(logits, student, divergence=divergence, beta=beta).sum()

    found, gradient = jax.value_and_grad(value)(logits)
    np.testing.assert_allclose(found, 0, atol=2e-6)  # logaddexp rounds once in each of 180 entries
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_the_soft_loss_by_hand():
    """Oracle: by hand. Logits log 9 and 0 at temperature 2 are 3 : 1; the student's 0, 0 are 1 : 1 at any:
    4 (3/4 log(3/2) + 1/4 log(1/2)) forward, 4 (1/2 log(2/3) + 1/2 log 2) reverse; gradient T (q - p) = +-1/2.
    1e-6: rounding.
    """
    teacher, student = jnp.array([np.log(9.0), 0.0]), jnp.zeros(2)
    forward = soft_loss(student, teacher, 2.0, divergence="forward_kl")
    reverse = soft_loss(student, teacher, 2.0, divergence="reverse_kl")
    np.testing.assert_allclose(forward, 3 * np.log(1.5) - np.log(2), rtol=1e-6)
    np.testing.assert_allclose(reverse, 2 * np.log(4 / 3), rtol=1e-6)
    gradient = jax.grad(soft_loss)(student, teacher, 2.0, divergence="forward_kl")
    np.testing.assert_allclose(gradient, [-0.5, 0.5], rtol=1e-6)


def test_the_scale_of_gradients_does_not_follow_the_temperature():
    """Oracle: the limit of arXiv:1503.02531, eq. 4, times T^2: (z - v) / V for centred logits. At T = 100 and
    logits of order 1 the next term is of order 1/100: 3%.
    """
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 10))
    student, teacher = student - student.mean(), teacher - teacher.mean()
    gradient = jax.grad(soft_loss)(
        jnp.float32(student), jnp.float32(teacher), 100.0, divergence="forward_kl"
    )
    wanted = (student - teacher) / 10
    np.testing.assert_allclose(gradient, wanted, atol=0.03 * np.abs(wanted).max())


@pytest.mark.parametrize("divergence, beta", ALL)
def test_a_soft_loss_of_certainty_stays_finite(divergence, beta):
    """Oracle: by hand: logits +-1000: the KL to the certain student that disagrees is 2000, to itself 0;
    every gradient is finite.
    """
    teacher = jnp.array([[1000.0, -1000.0, -1000.0]] * 2)
    student = jnp.stack([teacher[0], -teacher[0]])

    def value(student):
        losses = soft_loss(student, teacher, 1.0, divergence=divergence, beta=beta)
        return losses.sum(), losses

    gradient, losses = jax.grad(value, has_aux=True)(student)
    assert np.isfinite(gradient).all() and np.isfinite(losses).all()
    if divergence == "forward_kl":
        np.testing.assert_allclose(losses, [0, 2000 + np.log(2)], atol=1e-3)


def test_the_hard_loss_is_cross_entropy():
    """Oracle: torch's cross_entropy in float64, and by hand for certainty that errs; 1e-5: rounding."""
    rng = np.random.default_rng(0)
    logits, targets = np.float32(rng.normal(size=(23, 37)) * 3), rng.integers(0, 37, 23)
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(logits).double(), torch.tensor(targets), reduction="none"
    )
    np.testing.assert_allclose(hard_loss(jnp.array(logits), targets), wanted, rtol=1e-5)
    certain = hard_loss(jnp.array([[-1000.0, 1000.0, 1000.0]]), jnp.array([0]))
    np.testing.assert_allclose(certain, 2000 + np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
    "divergence, beta, words",
    [
        ("jsd", None, "between"),
        ("jsd", 1.0, "between"),
        ("jsd", 0.0, "between"),
        ("jsd", float("nan"), "between"),
        ("reverse_kl", 0.5, "None"),
    ],
)
def test_a_beta_that_does_not_fit_is_named(divergence, beta, words):
    """Oracle: by hand: the argument at the beginning of the message."""
    with pytest.raises(ValueError, match=f"^beta={beta} must be {words}"):
        check_beta(divergence, beta)
