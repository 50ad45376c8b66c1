"""Index scores and the selection of keys, against numpy loops, and attention over what is selected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import selection
from deepseek_jax.ops.attention import attend, attend_branches
from deepseek_jax.ops.platform import SIZES
from deepseek_jax.ops.selection import (
    index_scores,
    packed,
    select,
    select_branches,
    select_indices,
    select_rows,
    unpacked,
)
from tests.ops.test_attention import CLOSE, SCALE, branch_rows, normal, one_query
from tests.quick import others_slow


def index_of(b, t, j=2, y=4, seed=0):
    """(q, k, w). Two heads: ReLU leaves many scores at exactly 0, so that ties decide."""
    return normal(seed, b, t, j, y), normal(seed + 1, b, t, y), normal(seed + 2, b, t, j)


def loop_scores(q, k, w):
    """The definition, float32[b t s] by a numpy loop."""
    scores = np.zeros((*q.shape[:2], k.shape[1]), np.float32)
    for row, t, s in np.ndindex(scores.shape):
        products = [np.float32(head @ k[row, s]) / np.sqrt(q.shape[-1]) for head in q[row, t]]
        scores[row, t, s] = sum(w * max(p, 0) for w, p in zip(w[row, t], products, strict=True))
    return scores


def loop_select(scores, mask, k):
    """The k best of those that may be seen, the lower index first among equals, by a stable sort."""
    chosen = np.zeros(mask.shape, bool)
    for at in np.ndindex(mask.shape[:-1]):
        seen = np.flatnonzero(mask[at])
        best = sorted(seen, key=lambda s: (-scores[(*at, s)], s))[:k]
        chosen[(*at, best)] = True
    return chosen


def blocks_of_8(monkeypatch):
    monkeypatch.setitem(SIZES, "attention_block", {"any": 8})
    monkeypatch.setitem(SIZES, "longest_whole_row", {"any": 8})
    monkeypatch.setitem(SIZES, "index_scores_alive", {"any": 1})


@pytest.mark.parametrize("t", [5, 19, 150])
def test_index_scores_are_a_weighted_sum_of_relus(monkeypatch, t):
    """Oracle: the definition by a numpy loop, with blocks of 128 keys; a part of the scores is exactly 0."""
    blocks_of_8(monkeypatch)
    q, k, w = index_of(2, t)
    q, w = q[:, -5:], w[:, -5:]
    exact = loop_scores(q, k, w)
    ours = np.asarray(index_scores(q, k, w))
    np.testing.assert_allclose(ours, exact, **CLOSE)
    np.testing.assert_array_equal(ours == 0, exact == 0)
    assert 0.1 < (ours == 0).mean() < 0.5


def test_the_gradient_of_index_scores_by_blocks_is_that_of_all_at_once(monkeypatch):
    """Oracle: autodiff through the definition in one einsum."""
    arrays, probe = index_of(2, 150), normal(9, 2, 150, 150)

    def definition(q, k, w):
        products = jnp.einsum("btjy,bsy->btjs", q, k) / 2
        return jnp.einsum("btj,btjs->bts", w, jax.nn.relu(products))

    def gradients(form):
        return jax.jit(jax.grad(lambda *a: (form(*a) * probe).sum(), argnums=(0, 1, 2)))(*arrays)

    blocks_of_8(monkeypatch)
    for ours, theirs in zip(gradients(index_scores), gradients(definition), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sorted", "bits"])
@pytest.mark.parametrize("k", others_slow([1, 3, 6, 9, 12], 1, 6, 12))
def test_select_takes_the_best_and_of_equals_the_first(k, implementation):
    """Oracle: a stable sort. Scores of five values, so that ties cross the k-th place; 0 and -0 are equal;
    some queries see fewer than k keys, one none.
    """
    rng = np.random.default_rng(0)
    scores = rng.integers(-2, 3, (40, 9)).astype(np.float32) * rng.choice([1, -1], (40, 9))
    assert np.signbit(scores[scores == 0]).any() and not np.signbit(scores[scores == 0]).all()
    mask = rng.random((40, 9)) < rng.random((40, 1))
    mask[0] = False
    ours = np.asarray(select(jnp.asarray(scores), jnp.asarray(mask), k, implementation))
    np.testing.assert_array_equal(ours, loop_select(scores, mask, k))
    if k < 9:
        indices, filled = select_indices(jnp.asarray(scores), jnp.asarray(mask), k)
        by_index = np.zeros_like(ours)
        rows = np.broadcast_to(np.arange(40)[:, None], indices.shape)
        by_index[rows[filled], indices[filled]] = True
        np.testing.assert_array_equal(by_index, ours)
        assert (filled.sum(-1) == ours.sum(-1)).all()


def test_indices_of_keys_beyond_the_first_128_are_in_their_places():
    """Oracle: numpy's flatnonzero of the loop's selection: 300 keys are three chunks of the search."""
    rng = np.random.default_rng(0)
    scores, mask = rng.normal(size=(6, 300)).astype(np.float32), rng.random((6, 300)) < 0.9
    mask[5, 20:] = False
    indices, filled = select_indices(jnp.asarray(scores), jnp.asarray(mask), 140)
    for row, chosen in enumerate(loop_select(scores, mask, 140)):
        places = np.flatnonzero(chosen)
        assert (filled[row] == (np.arange(140) < len(places))).all()
        np.testing.assert_array_equal(indices[row][: len(places)], places)


def rows_of_three(t):
    cuts = np.arange(t)
    return np.stack([1 + (cuts > 2) + (cuts > 17), (cuts > 0) * (cuts < 21)]).astype(int)


def test_a_search_through_bits_finds_the_kth_largest_of_any_floats():
    """Oracle: numpy's sort, of numbers of all sizes and signs, infinities and denormals among them."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 101)) * 10.0 ** rng.integers(-44, 38, (50, 101))
    scores = np.concatenate([scores, np.full((50, 2), -np.inf), np.full((50, 1), np.inf)], 1)
    scores = scores.astype(np.float32)
    for k in (1, 7, 60, 104):
        last = selection._kth_by_bits(jnp.asarray(scores), k)
        np.testing.assert_array_equal(last[:, 0], np.sort(scores, -1)[:, -k])


@pytest.mark.parametrize("t", others_slow([5, 8, 13, 29], 5, 8, 29))
def test_rows_select_within_their_documents(monkeypatch, t):
    """Oracle: the loop over the scores of whole rows; packed documents, padding, blocks of 8 queries."""
    arrays, segments = index_of(2, t), rows_of_three(t)
    mask = np.tril(np.ones((t, t), bool)) & (segments[:, :, None] == segments[:, None])
    exact = loop_select(np.asarray(index_scores(*arrays)), mask, 4)
    blocks_of_8(monkeypatch)
    bits = select_rows(*arrays, segments, segments, first=0, index_topk=4)
    np.testing.assert_array_equal(unpacked(bits, t), exact)
    # The later half of the queries alone, as a device has them that holds a part of a row
    q, k, w = arrays
    later = slice(t // 2, None)
    bits = select_rows(
        q[:, later], k, w[:, later], segments[:, later], segments, first=t // 2, index_topk=4
    )
    np.testing.assert_array_equal(unpacked(bits, t), exact[:, later])


@pytest.mark.parametrize("t", others_slow([7, 8, 29], 7, 29))
def test_attention_over_a_selection_is_softmax_over_the_selected_keys(monkeypatch, t):
    """Oracle: the definition by a numpy loop, for the whole form and for the blockwise one with blocks of 8;
    the gradient of one against autodiff through the other. Some queries did not select their own block.
    """
    monkeypatch.setitem(SIZES, "attention_block", {"any": 8})
    q, k, v = normal(0, 2, t, 4, 6), normal(1, 2, t, 4, 6), normal(2, 2, t, 4, 5)
    segments, probe = rows_of_three(t), normal(9, 2, t, 4, 5)
    bits = select_rows(*index_of(2, t), segments, segments, first=0, index_topk=3)
    chosen = np.asarray(unpacked(bits, t))
    exact = np.zeros((2, t, 4, 5))
    for row, at, head in np.ndindex(2, t, 4):
        s = chosen[row, at]
        exact[row, at, head] = one_query(q[row, at, head], k[row, s, head], v[row, s, head])
    own_block = np.arange(t)[:, None] // 8 == np.arange(t) // 8
    assert t < 29 or not (chosen & own_block).any(-1).all()

    def results(implementation):
        def loss(q, k, v):
            options = dict(scale=SCALE, segment_ids=segments, selected=bits)
            out = attend(q, k, v, implementation=implementation, **options)
            return (out * probe).sum(), out

        grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return out, *grads

    whole, blockwise = results("whole"), results("blockwise")
    np.testing.assert_allclose(whole[0], exact, **CLOSE)
    for ours, theirs in zip(blockwise, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_kernel_refuses_a_selection():
    """Oracle: the words a reader needs."""
    q = normal(0, 1, 8, 1, 64)
    bits = packed(jnp.ones((1, 8, 8), bool))
    options = dict(scale=1.0, segment_ids=np.ones((1, 8), int), selected=bits)
    with pytest.raises(ValueError, match="takes no selection"):
        attend(q, q, q, implementation="interpreted", **options)


def test_branches_select_from_the_prefix_and_themselves():
    """Oracle: a row of its own for each branch, through select_rows and attend, outputs of real tokens."""
    q, k, v, seen, layout = branch_rows()
    k, v = (np.repeat(a, 2, axis=2) for a in (k, v))
    index, t = index_of(2, q.shape[1]), q.shape[1]
    prefix, branches = layout
    bits = select_branches(*index, seen, layout=layout, index_topk=3)
    ours = attend_branches(q, k, v, scale=SCALE, segment_ids=seen, selected=bits, layout=layout)
    length = (t - prefix) // branches
    for i in range(branches):
        own = np.r_[:prefix, prefix + i * length : prefix + (i + 1) * length]
        part = [a[:, own] for a in index]
        of_own = select_rows(*part, seen[:, own], seen[:, own], first=0, index_topk=3)
        options = dict(scale=SCALE, segment_ids=seen[:, own], selected=of_own)
        theirs = attend(q[:, own], k[:, own], v[:, own], **options)
        real = seen[:, own] > 0
        np.testing.assert_allclose(ours[:, own][real], theirs[real], **CLOSE)
