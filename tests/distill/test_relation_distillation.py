"""Relations between tokens, from a teacher with other heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.distill import relation_distillation as module
from deepseek_jax.distill.relation_distillation import relation_loss
from tests.distill.test_chunks import largest_array

B, T, HEADS = 2, 9, 4
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2, 2]], np.int32)


def features(sizes=(8, 20), b=B, t=T, seed=0):
    """Student's and teacher's, e.g. 2 keys of 4 against 5 of 4."""
    rng = np.random.default_rng(seed)
    return [jnp.float32(rng.normal(size=(b, t, size)) * 1.5) for size in sizes]


def loop(student, teacher, segments, heads):
    """By the definition, in float64: float64[b t]."""
    student, teacher = np.asarray(student, float), np.asarray(teacher, float)
    loss = np.zeros(segments.shape)
    for b, t in np.ndindex(segments.shape):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        for r in range(heads):
            rows = []
            for x in (teacher, student):
                size = x.shape[-1] // heads
                part = x[b, :, r * size : (r + 1) * size]
                relation = np.exp(part[seen] @ part[t] / np.sqrt(size))
                rows.append(relation / relation.sum())
            loss[b, t] += (rows[0] * np.log(rows[0] / rows[1])).sum() / heads
    return loss


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_the_loss_is_a_loop_over_tokens_and_relation_heads(chunk_size):
    """Oracle: numpy in float64, documents and padding apart; 1e-5: float32 rounding."""
    student, teacher = features()
    found = relation_loss(student, teacher, SEGMENTS, relation_heads=HEADS, chunk_size=chunk_size)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loop(student, teacher, SEGMENTS, HEADS), rtol=1e-5, atol=1e-6)
    begins = [(0, 0), (0, 4), (0, 7), (1, 0), (1, 1)]
    assert all(found[at] == 0 for at in begins)


def test_chunks_do_not_change_the_gradient():
    """Oracle: central differences of the float64 loop along a random direction: 1e-3 for float32."""
    student, teacher = features()
    direction = np.random.default_rng(3).normal(size=student.shape)
    probe = np.random.default_rng(4).normal(size=(B, T))

    def value(student, chunk_size):
        settings = dict(relation_heads=HEADS, chunk_size=chunk_size)
        return (relation_loss(student, teacher, SEGMENTS, **settings) * probe).sum()

    ends = [
        (loop(np.asarray(student) + step * direction, teacher, SEGMENTS, HEADS) * probe).sum()
        for step in (1e-5, -1e-5)
    ]
    slope = (ends[0] - ends[1]) / 2e-5
    assert abs(slope) > 0.1
    for chunk_size in (None, 4):
        gradient = jax.grad(value)(student, chunk_size)
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-3)


def test_turned_features_have_the_same_relations():
    """Oracle: 0: a rotation of each part keeps its dot products; 1e-5. No gradient for the teacher."""
    (student,) = features(sizes=(8,))
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(2, 2)))
    teacher = jnp.einsum("btrx,xy->btry", student.reshape(B, T, HEADS, 2), jnp.float32(turn))
    teacher = teacher.reshape(student.shape)

    def value(student, teacher):
        return relation_loss(student, teacher, SEGMENTS, relation_heads=HEADS).sum()

    np.testing.assert_allclose(value(student, teacher), 0, atol=1e-5)
    other = features(seed=5, sizes=(8,))[0]
    of_student, of_teacher = jax.grad(value, (0, 1))(student, other)
    assert (of_teacher == 0).all() and jnp.abs(of_student).max() > 0.01


def test_no_token_sees_a_later_one_or_another_document():
    """Oracle: token 6 of document 2 of row 0 changes; values of earlier tokens and other documents stay
    equal to the bit.
    """
    student, teacher = features()
    before = relation_loss(student, teacher, SEGMENTS, relation_heads=HEADS)
    after = relation_loss(student.at[0, 6].add(1.0), teacher, SEGMENTS, relation_heads=HEADS)
    changed = np.argwhere(np.asarray(before != after)).tolist()
    assert changed == [[0, 6]]


def test_every_pair_of_tokens_at_once_never_lives():
    """Oracle: the jaxpr of the gradient makes no array of half the entries of [b r t t]."""
    b, t = 1, 512
    student, teacher = features(b=b, t=t)
    segments = jnp.ones((b, t), jnp.int32)

    def value(student):
        settings = dict(relation_heads=HEADS, chunk_size=16)
        return relation_loss(student, teacher, segments, **settings).sum()

    assert largest_array(jax.make_jaxpr(jax.grad(value))(student).jaxpr) < b * HEADS * t * t / 2


def test_relation_heads_have_to_divide_both_widths():
    """Oracle: the message, by hand: 8 divides 8 and not 20, 5 divides 20 and not 8."""
    student, teacher = features()
    for heads in (8, 5):
        with pytest.raises(ValueError, match=f"^relation_heads={heads} must divide"):
            relation_loss(student, teacher, SEGMENTS, relation_heads=heads)


def test_a_query_has_a_score_for_each_key_of_each_head_on_both_sides(monkeypatch):
    """Oracle: by hand: 2 sides x B rows x 2 heads x T keys are in memory for each query position."""
    seen = []

    def taken(of_chunk, arrays, *, width, chunk_size):
        seen.append((width, chunk_size))
        return jnp.zeros((T, B))

    monkeypatch.setattr(module, "map_chunks", taken)
    relation_loss.__wrapped__(*features(), SEGMENTS, relation_heads=2, chunk_size=3)
    assert seen == [(2 * B * 2 * T, 3)]
