"""The teacher's likeliest tokens, and a bound on what the dropped ones add to the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.distill.divergences import soft_loss
from deepseek_jax.distill.top_k import (
    TopK,
    dropped_mass_bound,
    split_tail,
    top_k_logprobs,
    top_k_loss,
)
from tests.distill.test_divergences import ALL
from tests.quick import others_slow

BOUNDED = [("forward_kl", None), ("jsd", 0.5), ("jsd", 0.05), ("jsd", 0.95)]


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize(
    "v, k",
    others_slow(
        [(41, 1), (41, 5), (41, 40), (41, 41), (2 * 4096 + 3, 5)], (41, 41), (2 * 4096 + 3, 5)
    ),
)
def test_extraction_is_numpys(v, k, chunk_size):
    """Oracle: numpy's sort and sums in float64; 1e-5 relative: float32 rounding, of the tail too."""
    rng = np.random.default_rng(0)
    hidden, head = np.float32(rng.normal(size=(30, 8))), np.float32(rng.normal(size=(v, 8)) * 2)
    found = top_k_logprobs(jnp.array(hidden), jnp.array(head), k, 0.7, chunk_size=chunk_size)
    p = softmax(hidden.astype(float) @ head.astype(float).T / 0.7)
    order = np.argsort(-p, axis=-1)
    assert found.ids.dtype == jnp.int32 and (found.ids == order[:, :k]).all()
    sorted_p = np.take_along_axis(p, order, axis=-1)
    np.testing.assert_allclose(found.logprobs, np.log(sorted_p[:, :k]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.dropped, sorted_p[:, k:].sum(-1), rtol=1e-4, atol=1e-30)


def test_a_token_alone_has_the_loss_and_the_bound_that_it_has_among_others():
    """Oracle: the rows of one call."""
    rng = np.random.default_rng(0)
    hidden, head, logits = (jnp.float32(rng.normal(size=size)) for size in ((6, 8), (9, 8), (6, 9)))
    teacher = top_k_logprobs(hidden, head, 2)
    whole, metrics = top_k_loss(logits, teacher, 1.0, divergence="forward_kl")
    alone, bound = top_k_loss(
        logits[:1], TopK(*(each[:1] for each in teacher)), 1.0, divergence="forward_kl"
    )
    np.testing.assert_allclose(alone, whole[:1], rtol=1e-6)
    np.testing.assert_allclose(bound["soft_bound"], metrics["soft_bound"][:1], rtol=1e-6)
    assert bound["soft_bound"] > 0


def test_no_gradient_reaches_the_teacher():
    """Oracle: by hand: 0."""
    hidden, head = jax.random.normal(jax.random.key(0), (2, 7, 8))
    gradients = jax.grad(lambda *of: top_k_logprobs(*of, 2).logprobs.sum(), (0, 1))(hidden, head)
    assert not any(map(np.any, gradients))


def test_a_small_dropped_mass_keeps_its_digits():
    """Oracle: by hand: 9 tokens at e^-40 of the first drop 9 e^-40, which 1 - p would round to 0."""
    head = jnp.array([[40.0]] + [[0.0]] * 9)
    found = top_k_logprobs(jnp.ones((1, 1)), head, 1)
    np.testing.assert_allclose(found.dropped, 9 * np.exp(-40.0), rtol=1e-5)


def test_a_tail_that_no_float32_holds_stays_finite_and_so_does_its_gradient():
    """Oracle: by hand: tokens at e^-200 of the first count as float32's least normal number."""

    def tail(logits):
        return split_tail(logits, jnp.array([[0]]), 0.5).tail[0]

    found, gradient = jax.value_and_grad(tail)(jnp.array([[100.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found, np.log(np.finfo(np.float32).tiny), rtol=1e-6)
    assert jnp.isfinite(gradient).all()


def test_extraction_never_holds_the_logits():
    """Oracle: the compiler's temporary bytes, under a quarter of the 16 MiB of [m v] float32."""
    m, v = 1024, 4096
    arguments = jnp.ones((m, 8)), jnp.ones((v, 8))
    lowered = jax.jit(lambda h, w: top_k_logprobs(h, w, 8, chunk_size=32)).lower(*arguments)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < m * v


@pytest.mark.parametrize("top_k", [0, 10])
def test_extraction_refuses_more_tokens_than_there_are(top_k):
    """Oracle: the argument and the limits in the message, by hand."""
    with pytest.raises(ValueError, match=f"^top_k={top_k} must be from 1 to 9"):
        top_k_logprobs(jnp.ones((1, 2)), jnp.ones((9, 2)), top_k)


def logits_and_cache(k, temperature, m=23, v=37):
    """(student's logits, teacher's logits, TopK of them): a head of one makes hidden states logits."""
    student, teacher = jnp.float32(np.random.default_rng(0).normal(size=(2, m, v)) * 2)
    return student, teacher, top_k_logprobs(teacher, jnp.eye(v), k, temperature)


@pytest.mark.parametrize("divergence, beta", ALL)
def test_the_loss_is_the_divergence_of_buckets(divergence, beta):
    """Oracle: a loop over tokens, sets of ids and sums of probabilities, in float64; 1e-5: rounding."""
    student, teacher, cache = logits_and_cache(5, 1.7)
    wanted = []
    pairs = zip(*(softmax(np.float64(x) / 1.7) for x in (student, teacher)), strict=True)
    for q, p in pairs:
        kept = np.argsort(-p)[:5]
        p, q = (np.append(x[kept], np.delete(x, kept).sum()) for x in (p, q))
        wanted.append(1.7**2 * divergences(p[None], q[None], divergence, beta)[0])
    loss, _ = top_k_loss(student, cache, 1.7, divergence=divergence, beta=beta)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence, beta", ALL)
def test_the_dense_loss_lies_between_the_buckets_and_their_bound(divergence, beta):
    """Oracle: soft_loss, over 2,000 tokens at another temperature than 1; 1e-4: rounding of both."""
    student, teacher, cache = logits_and_cache(6, 2.5, m=2000)
    kind = dict(divergence=divergence, beta=beta)
    dense = soft_loss(student, teacher, 2.5, **kind)
    loss, metrics = top_k_loss(student, cache, 2.5, **kind)
    bound = metrics["soft_bound"]
    assert (loss <= dense + 1e-4).all() and (dense <= loss + bound + 1e-4).all()
    assert (dense - loss).mean() > 0.1


@pytest.mark.parametrize("divergence, beta", ALL)
def test_all_tokens_are_the_dense_loss(divergence, beta):
    """Oracle: soft_loss, values and gradients, and a bound of 0; 2e-5: float32 rounding."""
    student, teacher, cache = logits_and_cache(37, 0.8)
    kind = dict(divergence=divergence, beta=beta)

    def of_cache(student):
        loss, metrics = top_k_loss(student, cache, 0.8, **kind)
        return loss.sum(), (loss, metrics["soft_bound"])

    def dense(student):
        loss = soft_loss(student, teacher, 0.8, **kind)
        return loss.sum(), (loss, jnp.zeros(len(student)))

    ours, theirs = (jax.grad(f, has_aux=True)(student) for f in (of_cache, dense))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_the_gradient_leaves_the_shape_of_the_tail_alone():
    """Oracle: by hand: the gradient of forward KL is q_i - p_i in the logit of a kept token and
    q_i (Q - P) / Q in that of a dropped one.
    """
    v, k = 6, 2
    logits = jnp.float32(np.random.default_rng(3).normal(size=(1, v)))
    p = np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
    cache = TopK(jnp.array([[0, 1]]), jnp.log(jnp.float32(p[None, :k])), jnp.float32([0.3]))

    def value(logits):
        return top_k_loss(logits, cache, 1.0, divergence="forward_kl")[0].sum()

    q = softmax(np.float64(logits[0]))
    wanted = np.where(np.arange(v) < k, q - p, q * (q[k:].sum() - 0.3) / q[k:].sum())
    np.testing.assert_allclose(jax.grad(value)(logits)[0], wanted, atol=1e-6)


@pytest.mark.parametrize("divergence, beta", ALL)
def test_a_cache_of_certainty_stays_finite(divergence, beta):
    """Oracle: by hand: logits +-1000: the KL to the certain student that disagrees is 2000, to itself 0; the
    tail dropped is an exact 0, and every gradient finite.
    """
    certain = jnp.array([[1000.0, -1000.0, -1000.0]])
    cache = top_k_logprobs(jnp.repeat(certain, 2, 0), jnp.eye(3), 1)
    assert (cache.dropped == 0).all()

    def value(student):
        losses, _ = top_k_loss(student, cache, 1.0, divergence=divergence, beta=beta)
        return losses.sum(), losses

    gradient, losses = jax.grad(value, has_aux=True)(jnp.concatenate([certain, -certain]))
    assert np.isfinite(gradient).all() and np.isfinite(losses).all()
    if divergence == "forward_kl":
        np.testing.assert_allclose(losses, [0, 2000 + np.log(2)], atol=1e-3)


def divergences(p, q, divergence, beta):
    """By the definition, in float64, 0 log 0 being 0: [m v] twice -> [m]."""

    def kl(a, b):
        return np.where(a > 0, a * np.log(np.where(a > 0, a, 1) / b), 0).sum(-1)

    if divergence == "forward_kl":
        return kl(p, q)
    if divergence == "reverse_kl":
        return kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def gap_and_bound(p, q, k, divergence, beta):
    """(dense, how far it lies above that of the buckets, in float64; our bound on it)."""
    ids = np.argsort(-p, axis=-1)[:, :k]
    dropped = np.ones(p.shape, bool)
    np.put_along_axis(dropped, ids, False, axis=-1)
    bucket_p, bucket_q = (
        np.column_stack([np.take_along_axis(x, ids, -1), np.where(dropped, x, 0).sum(-1)])
        for x in (p, q)
    )
    dense = divergences(p, q, divergence, beta)
    gap = dense - divergences(bucket_p, bucket_q, divergence, beta)
    teacher = TopK(
        jnp.asarray(ids, jnp.int32), jnp.log(bucket_p[:, :k]), jnp.float32(bucket_p[:, -1])
    )
    student = split_tail(jnp.log(jnp.float32(q)), teacher.ids)
    bound = dropped_mass_bound(teacher, student, p.shape[1], divergence=divergence, beta=beta)
    return dense, gap, np.asarray(bound, float)


@pytest.mark.parametrize("k", others_slow([1, 3, 13, 14], 3, 14))
@pytest.mark.parametrize("divergence, beta", BOUNDED)
def test_what_the_buckets_hide_is_never_negative_and_within_the_bound(divergence, beta, k):
    """Oracle: dense less buckets in float64, on 6,000 random pairs from flat to peaked; 2e-6 plus a relative
    1e-5 for the float32 of the bound.
    """
    rng = np.random.default_rng(k)
    scale = rng.choice([0.1, 1.0, 4.0, 10.0], size=(2, 6000, 1))
    p, q = softmax(rng.normal(size=(2, 6000, 15)) * scale)
    _, gap, bound = gap_and_bound(p, q, k, divergence, beta)
    assert (gap >= -1e-12).all()
    assert (gap <= bound * (1 + 1e-5) + 2e-6).all()
    if k < 14:
        assert np.median(bound) > 0 and gap.max() > 0.01


def test_one_dropped_token_hides_nothing():
    """Oracle: by hand: 0, for every divergence."""
    p, q = softmax(np.random.default_rng(0).normal(size=(2, 50, 6)) * 3)
    for divergence, beta in [*BOUNDED, ("reverse_kl", None)]:
        _, gap, bound = gap_and_bound(p, q, 5, divergence, beta)
        np.testing.assert_allclose(gap, 0, atol=1e-12)
        assert (bound == 0).all()


def test_the_forward_bound_is_attained():
    """Oracle: by hand: all of P = 0.2 is on the token that the student finds least likely, 0.01 of Q = 0.31:
    both gap and bound are 0.2 log(31). 1e-5: float32.
    """
    p, q = np.array([[0.5, 0.3, 0.2, 0.0, 0.0]]), np.array([[0.4, 0.29, 0.01, 0.1, 0.2]])
    _, gap, bound = gap_and_bound(p, q, 2, "forward_kl", None)
    np.testing.assert_allclose(gap, 0.2 * np.log(31), rtol=1e-10)
    np.testing.assert_allclose(bound, gap, rtol=1e-5)


def test_the_forward_bound_is_attained_by_many_tokens_as_likely_as_the_last_one_kept():
    """Oracle: by hand: five dropped tokens have the 0.1 of p_k, a fifth of P, and a tenth of Q."""
    p = np.array([[0.4, 0.1, *[0.1] * 5, 0.0]])
    q = np.array([[0.3, 0.3, *[0.04] * 5, 0.2]])
    _, gap, bound = gap_and_bound(p, q, 2, "forward_kl", None)
    np.testing.assert_allclose(gap, 0.5 * np.log(2), rtol=1e-10)
    np.testing.assert_allclose(bound, gap, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_the_jsd_bound_is_attained(beta):
    """Oracle: the float64 gap where no dropped token is likely for both; 1e-5: float32, and the 1e-12 that
    keeps logarithms finite.
    """
    p = np.array([[0.5, 0.3, 0.2, 1e-12, 1e-12]])
    q = np.array([[0.4, 0.29, 1e-12, 0.11, 0.2]])
    _, gap, bound = gap_and_bound(p, q, 2, "jsd", beta)
    assert gap > 0.05
    np.testing.assert_allclose(bound, gap, rtol=1e-5)


@pytest.mark.parametrize("divergence, beta, factor", [("forward_kl", None, 12), ("jsd", 0.5, 3)])
def test_a_bound_is_of_the_order_of_what_models_far_apart_hide(divergence, beta, factor):
    """Oracle: float64 gaps of 2,000 pairs, with the top 10 of 200 tokens; the student is the teacher with
    noise of 2 nats. The factors are the measured ones, 9.4 and 2.4, with a margin.
    """
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2000, 200)) * 3
    p, q = softmax(logits), softmax(logits + rng.normal(size=logits.shape) * 2)
    _, gap, bound = gap_and_bound(p, q, 10, divergence, beta)
    assert gap.mean() < bound.mean() < factor * gap.mean()


def test_reverse_kl_hides_as_much_as_you_please():
    """Oracle: float64: as the teacher's probability of one dropped token falls, no cached number changes and
    the gap grows without limit, so only inf is a bound.
    """
    gaps = []
    for tiny in (1e-3, 1e-30, 1e-300):
        p = np.array([[0.6, 0.2, 0.2 - tiny, tiny]])
        q = np.array([[0.25, 0.25, 0.25, 0.25]])
        _, gap, bound = gap_and_bound(p, q, 1, "reverse_kl", None)
        gaps.append(gap[0])
        assert bound == np.inf
    assert gaps[1] > 10 and gaps[2] > 100
