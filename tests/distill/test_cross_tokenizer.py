"""Soft targets across two vocabularies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.distill.cross_tokenizer import (
    cross_tokenizer_distillation,
    shared_vocabulary_loss,
    sorted_probability_loss,
)
from deepseek_jax.distill.logit_distillation import hard_loss, soft_loss
from tests.distill.test_divergences import ALL
from tests.distill.test_logit_distillation import largest_array
from tests.distill.test_top_k import divergences, softmax

M, V, TEACHER_V = 11, 13, 29
SHARED = np.array([0, 3, 4, 9], np.int32), np.array([7, 0, 28, 5], np.int32)


def logits(m=M, sizes=(V, TEACHER_V), seed=0):
    rng = np.random.default_rng(seed)
    return [np.float32(rng.normal(size=(m, size)) * 3) for size in sizes]


@pytest.mark.parametrize("sizes", [(V, TEACHER_V), (TEACHER_V, V), (V, V)])
def test_the_sorted_loss_is_a_loop(sizes):
    """Oracle: Python's sorted, zeros appended, in float64; 1e-6: rounding of probabilities."""
    student, teacher = logits(sizes=sizes)
    wanted = []
    for q, p in zip(softmax(student.astype(float)), softmax(teacher.astype(float)), strict=True):
        q, p = sorted(q.tolist(), reverse=True), sorted(p.tolist(), reverse=True)
        longer = max(len(q), len(p))
        q, p = q + [0.0] * (longer - len(q)), p + [0.0] * (longer - len(p))
        wanted.append(sum(abs(a - b) for a, b in zip(q, p, strict=True)))
    np.testing.assert_allclose(sorted_probability_loss(student, teacher), wanted, atol=1e-6)


def test_the_sorted_loss_knows_no_identities():
    """Oracle: 0 to a permuted copy with 16 impossible tokens more; by hand 1 for certainty against 1 : 1."""
    (student,) = logits(sizes=(V,))
    order = np.random.default_rng(1).permutation(TEACHER_V)
    teacher = np.pad(student, ((0, 0), (0, TEACHER_V - V)), constant_values=-1e4)[:, order]
    np.testing.assert_allclose(sorted_probability_loss(student, teacher), 0, atol=1e-6)
    by_hand = sorted_probability_loss(jnp.array([[90.0, 0.0]]), jnp.zeros((1, 2)))
    np.testing.assert_allclose(by_hand, 1, rtol=1e-6)


def bucketed(probabilities, ids):
    rest = np.delete(probabilities, ids, axis=-1).sum(-1, keepdims=True)
    return np.concatenate([probabilities[:, ids], rest], axis=-1)


@pytest.mark.parametrize("divergence, beta", ALL)
def test_the_matched_loss_is_the_divergence_of_shared_tokens_and_the_rest(divergence, beta):
    """Oracle: numpy's sums and definitions in float64, at temperature 2; 1e-5: rounding."""
    student, teacher = logits()
    q = bucketed(softmax(student.astype(float) / 2), SHARED[0])
    p = bucketed(softmax(teacher.astype(float) / 2), SHARED[1])
    settings = dict(divergence=divergence, temperature=2.0, beta=beta)
    found = shared_vocabulary_loss(jnp.array(student), jnp.array(teacher), SHARED, **settings)
    np.testing.assert_allclose(found, 4 * divergences(p, q, divergence, beta), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence, beta", ALL)
def test_all_tokens_shared_are_the_dense_loss(divergence, beta):
    """Oracle: soft_loss on the teacher's logits in the student's order, with gradients; 1e-5: rounding."""
    student, teacher = logits(sizes=(V, V))
    order = np.random.default_rng(2).permutation(V)
    shared = (
        np.arange(V),
        np.argsort(order),
    )  # the student's token i is the teacher's token order^-1(i)
    settings = dict(divergence=divergence, temperature=1.5, beta=beta)

    def matched(student):
        return shared_vocabulary_loss(student, teacher[:, order], shared, **settings)

    def dense(student):
        return soft_loss(student, teacher, **settings)

    student = jnp.array(student)
    np.testing.assert_allclose(matched(student), dense(student), rtol=1e-5, atol=1e-5)
    ours, theirs = (jax.grad(lambda z, f=f: f(z).sum())(student) for f in (matched, dense))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_side_whose_tokens_are_all_shared_stays_finite():
    """Oracle: the definition in float64 with an empty bucket, 0 log 0 = 0: forward for the teacher's side.
    In reverse 0 would be forbidden outright; it counts as 1.2e-38, log -87, and so is finite.
    """
    student, teacher = (jnp.array(x) for x in logits(sizes=(V, 4)))
    shared = np.array([0, 3, 4, 9]), np.arange(4)
    q = bucketed(softmax(np.asarray(student, float)), shared[0])
    p = softmax(np.asarray(teacher, float))
    wanted = (p * np.log(p / q[:, :4])).sum(-1)
    found = shared_vocabulary_loss(
        student, teacher, shared, divergence="forward_kl", temperature=1.0
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for divergence, beta in ALL:
        settings = dict(divergence=divergence, temperature=1.0, beta=beta)
        gradient = jax.grad(
            lambda z, s=settings: shared_vocabulary_loss(z, teacher, shared, **s).sum()
        )(student)
        assert np.isfinite(gradient).all()


def weights_and_states(m=M, v=V, teacher_v=TEACHER_V):
    rng = np.random.default_rng(4)
    shapes = (m, 6), (v, 6), (m, 10), (teacher_v, 10)
    hidden, head, teacher, teacher_head = (jnp.float32(rng.normal(size=s)) for s in shapes)
    return hidden, head, jnp.asarray(rng.integers(0, v, m), jnp.int32), teacher, teacher_head


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_chunks_give_the_losses_of_full_logits(chunk_size):
    """Oracle: the three losses on full logits, values and gradients in hidden and head; 1e-5: rounding."""
    hidden, head, targets, teacher, teacher_head = weights_and_states()
    settings = dict(divergence="jsd", temperature=2.0, beta=0.3)

    def chunked(hidden, head):
        return cross_tokenizer_distillation(
            hidden, head, targets, teacher, teacher_head, SHARED, **settings, chunk_size=chunk_size
        )

    def full(hidden, head):
        z, v = hidden @ head.T, teacher @ teacher_head.T
        matched = shared_vocabulary_loss(z, v, SHARED, **settings)
        return matched, sorted_probability_loss(z, v), hard_loss(z, targets)

    for ours, theirs in zip(chunked(hidden, head), full(hidden, head), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for term in range(3):
        pairs = (
            jax.grad(lambda *a, f=f, i=term: f(*a)[i].sum(), (0, 1))(hidden, head)
            for f in (chunked, full)
        )
        for ours, theirs in zip(*pairs, strict=True):
            assert jnp.abs(theirs).max() > 1e-3
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def test_the_teacher_gets_no_gradient_and_no_large_array_lives():
    """Oracle: exactly 0 for both of the teacher's; no array of half the entries of [m v] in the jaxpr."""
    m, v = 512, 2048
    hidden, head, targets, *teacher = weights_and_states(m, v, v + 100)

    def value(hidden, teacher, teacher_head):
        settings = dict(divergence="forward_kl", temperature=1.0, chunk_size=16)
        losses = cross_tokenizer_distillation(
            hidden, head, targets, teacher, teacher_head, SHARED, **settings
        )
        return sum(x.sum() for x in losses)

    gradient = jax.grad(value, (0, 1, 2))
    of_student, *of_teacher = gradient(hidden, *teacher)
    assert all((g == 0).all() for g in of_teacher) and jnp.abs(of_student).max() > 0
    assert largest_array(jax.make_jaxpr(gradient)(hidden, *teacher).jaxpr) < m * v / 2
