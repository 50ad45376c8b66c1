"""Soft targets across two vocabularies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from deepseek_jax.distill.chunks import Outputs, Term, mean_over_tokens
from deepseek_jax.distill.cross_tokenizer import (
    outputs_beside,
    shared_vocabulary_loss,
    sorted_probability_loss,
)
from deepseek_jax.distill.divergences import hard_loss, soft_loss
from deepseek_jax.models import hidden_states
from tests.distill.test_chunks import largest_array
from tests.distill.test_divergences import ALL
from tests.distill.test_top_k import divergences, softmax
from tests.tiny import tiny_model

M, V, TEACHER_V = 11, 13, 29
SHARED = np.array([0, 3, 4, 9], np.int32), np.array([7, 0, 28, 5], np.int32)


def logits(m=M, sizes=(V, TEACHER_V), seed=0):
    rng = np.random.default_rng(seed)
    return [np.float32(rng.normal(size=(m, size)) * 3) for size in sizes]


def test_a_targets_outputs_are_those_of_the_position_that_predicts_its_token():
    """Oracle: the teacher's hidden states, picked by hand: of the token before the aligned one; of position 0
    where no token is aligned, and where the first one is.
    """
    config, params = tiny_model("gqa")
    tokens = np.arange(1, 9, dtype=np.int32)[None]
    batch = {"teacher_tokens": tokens, "teacher_tokens_segment_ids": np.ones_like(tokens)}
    # Of each token; its target is the next one
    batch["teacher_index"] = jnp.array([[5, 1, 0, -1, 7, 2]])
    outputs = outputs_beside(config, params, batch)
    hidden = hidden_states(config, params, tokens)[0]
    wanted = hidden[:, jnp.array([0, 0, 0, 6, 1, 4])]
    np.testing.assert_allclose(outputs.hidden, wanted, atol=1e-5)


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
    """Oracle: by hand: 0 to a permuted copy with 16 impossible tokens more; 1 for (1, 0) and (0.5, 0.5)."""
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
    kind = dict(divergence=divergence, beta=beta)
    found = shared_vocabulary_loss(jnp.array(student), jnp.array(teacher), 2.0, SHARED, **kind)
    np.testing.assert_allclose(found, 4 * divergences(p, q, divergence, beta), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence, beta", ALL)
def test_all_tokens_shared_are_the_dense_loss(divergence, beta):
    """Oracle: soft_loss on the teacher's logits in the student's order, with gradients; 1e-5: rounding."""
    student, teacher = logits(sizes=(V, V))
    order = np.random.default_rng(2).permutation(V)
    # The student's token i is the teacher's token order^-1(i)
    shared = np.arange(V), np.argsort(order)
    kind = dict(divergence=divergence, beta=beta)

    def matched(student):
        return shared_vocabulary_loss(student, teacher[:, order], 1.5, shared, **kind)

    def dense(student):
        return soft_loss(student, teacher, 1.5, **kind)

    student = jnp.array(student)
    np.testing.assert_allclose(matched(student), dense(student), rtol=1e-5, atol=1e-5)
    ours, theirs = (jax.grad(lambda z, f=f: f(z).sum())(student) for f in (matched, dense))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_side_whose_tokens_are_all_shared_stays_finite():
    """Oracle: the definition in float64, 0 log 0 = 0, for an empty bucket of the teacher and forward KL.
    Reverse KL would be infinite; here the empty bucket counts as 1.2e-38, with log -87.
    """
    student, teacher = (jnp.array(x) for x in logits(sizes=(V, 4)))
    shared = np.array([0, 3, 4, 9]), np.arange(4)
    q = bucketed(softmax(np.asarray(student, float)), shared[0])
    p = softmax(np.asarray(teacher, float))
    wanted = (p * np.log(p / q[:, :4])).sum(-1)
    found = shared_vocabulary_loss(student, teacher, 1.0, shared, divergence="forward_kl")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for divergence, beta in ALL:
        kind = dict(divergence=divergence, beta=beta)
        gradient = jax.grad(
            lambda z, kind=kind: shared_vocabulary_loss(z, teacher, 1.0, shared, **kind).sum()
        )(student)
        assert np.isfinite(gradient).all()


def outputs_and_terms(m=M, v=V, teacher_v=TEACHER_V, **kind):
    """(Outputs of the student, of the teacher, terms at temperature 2 with shares that differ)."""
    rng = np.random.default_rng(4)
    shapes = (1, m, 6), (v, 6), (1, m, 10), (teacher_v, 10)
    hidden, head, teacher, teacher_head = (jnp.float32(rng.normal(size=s)) for s in shapes)
    targets = jnp.asarray(rng.integers(0, v, (1, m)), jnp.int32)
    shares = jnp.float32(rng.uniform(size=(3, 1, m)))
    matched = functools.partial(shared_vocabulary_loss, **kind)
    terms = {
        "matched": Term(Partial(matched, temperature=2.0, shared=SHARED), shares[0], 0.5),
        "sorted": Term(Partial(sorted_probability_loss), shares[1], 0.3),
        "hard": Term(Partial(hard_loss), shares[2], 0.2, targets),
    }
    return Outputs(hidden, head), Outputs(teacher, teacher_head), terms


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_chunks_give_the_losses_of_full_logits(chunk_size):
    """Oracle: the three losses on full logits, values and gradient in hidden and head; 1e-5: rounding."""
    kind = dict(divergence="jsd", beta=0.3)
    student, teacher, terms = outputs_and_terms(**kind)

    def chunked(student):
        return mean_over_tokens(terms, student, teacher, chunk_size=chunk_size)

    def full(student):
        z, v = student.hidden[0] @ student.head.T, teacher.hidden[0] @ teacher.head.T
        losses = {
            "matched": shared_vocabulary_loss(z, v, 2.0, SHARED, **kind),
            "sorted": sorted_probability_loss(z, v),
            "hard": hard_loss(z, terms["hard"].against[0]),
        }
        means = {name: (terms[name].share[0] * loss).sum() for name, loss in losses.items()}
        return sum(terms[name].weight * mean for name, mean in means.items()), means

    ours, theirs = (jax.value_and_grad(f, has_aux=True)(student) for f in (chunked, full))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == jnp.float32 and jnp.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.slow
def test_the_teacher_gets_no_gradient_and_no_large_array_lives():
    """Oracle: exactly 0 for the teacher's two arrays; no array of half the entries of [m v] in the jaxpr."""
    m, v = 512, 2048
    student, teacher, terms = outputs_and_terms(m, v, v + 100, divergence="forward_kl")

    def value(student, teacher):
        return mean_over_tokens(terms, student, teacher, chunk_size=16)[0]

    gradient = jax.grad(value, (0, 1))
    of_student, of_teacher = gradient(student, teacher)
    assert all((g == 0).all() for g in of_teacher) and jnp.abs(of_student.hidden).max() > 0
    assert largest_array(jax.make_jaxpr(gradient)(student, teacher).jaxpr) < m * v / 2
