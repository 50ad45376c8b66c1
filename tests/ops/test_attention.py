"""Attention against loops over single queries, and against its own other forms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.attention import (
    attend,
    attend_branches,
    attend_cached,
    attend_latent,
    attend_latent_selected,
)
from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.platform import SIZES, size_of
from tests.costs.products import matmul_flops
from tests.quick import others_slow

SCALE = 0.7
CLOSE = dict(atol=2e-6, rtol=2e-5)  # float32 rounding of sums over a few keys


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_query(q, keys, values):
    """softmax(q . k * SCALE) v in float64, over keys [s x] and values [s u]."""
    scores = keys.astype(np.float64) @ q.astype(np.float64) * SCALE
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ values


def loop_attend(q, k, v, segment_ids):
    """attend by numpy: each query head reads key head i // (h / k) over what its token may see."""
    b, t, h, _ = q.shape
    out = np.zeros((b, t, h, v.shape[-1]))
    for row, at, head in np.ndindex(b, t, h):
        seen = [s for s in range(at + 1) if segment_ids[row, s] == segment_ids[row, at]]
        of = head // (h // k.shape[2])
        out[row, at, head] = one_query(q[row, at, head], k[row, seen, of], v[row, seen, of])
    return out


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_attend_is_softmax_over_what_comes_before_in_the_segment(key_heads):
    """Oracle: the definition by a numpy loop; two packed documents, padding left and right."""
    q, k, v = normal(0, 2, 9, 4, 6), normal(1, 2, 9, key_heads, 6), normal(2, 2, 9, key_heads, 5)
    segment_ids = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [0, 0, 3, 3, 3, 3, 4, 4, 4]])
    ours = attend(q, k, v, scale=SCALE, segment_ids=segment_ids)
    np.testing.assert_allclose(ours, loop_attend(q, k, v, segment_ids), **CLOSE)


def forms(monkeypatch, *arrays, **options):
    """(outputs and gradients of attend whole, those blockwise) for blocks of 8, as two flat lists."""
    monkeypatch.setitem(SIZES, "attention_block", {"any": 8})
    probe = normal(10, *arrays[0].shape[:3], arrays[2].shape[-1])

    def results(implementation):
        def loss(q, k, v):
            out = attend(q, k, v, scale=SCALE, implementation=implementation, **options)
            return (out * probe).sum(), out

        grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
        return [out, *grads]

    return results("whole"), results("blockwise")


SIZES_OF_ROWS = [(t, key_heads) for t in (5, 8, 13, 24, 29) for key_heads in (1, 2, 4)]


@pytest.mark.parametrize(
    ("t", "key_heads"), others_slow(SIZES_OF_ROWS, (5, 1), (8, 2), (13, 4), (24, 1), (29, 2))
)
def test_blockwise_attention_is_the_whole_one(monkeypatch, t, key_heads):
    """Oracle: the plain form and autodiff through it; rows shorter than a block, of whole blocks, and not;
    packed documents that begin and end within blocks,
    padding on both sides, values narrower than keys.
    """
    arrays = normal(0, 2, t, 4, 6), normal(1, 2, t, key_heads, 6), normal(2, 2, t, key_heads, 5)
    cuts = np.arange(t)
    segment_ids = np.stack([1 + (cuts > 2) + (cuts > 17), (cuts > 0) * (cuts < 21)]).astype(int)
    whole, blockwise = forms(monkeypatch, *arrays, segment_ids=segment_ids)
    for ours, theirs in zip(blockwise, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_blockwise_attention_in_bfloat16_is_as_near_the_truth_as_the_whole_one(monkeypatch):
    """Oracle: the plain form in float32: blockwise errs at most twice as much as whole does."""
    arrays = normal(0, 2, 29, 4, 6), normal(1, 2, 29, 2, 6), normal(2, 2, 29, 2, 5)
    options = dict(segment_ids=np.ones((2, 29), int))
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    exact, _ = forms(monkeypatch, *(x.astype(jnp.float32) for x in rounded), **options)
    whole, blockwise = forms(monkeypatch, *rounded, **options)
    for ours, theirs, true in zip(blockwise, whole, exact, strict=True):
        assert ours.dtype == theirs.dtype == jnp.bfloat16
        assert np.abs(ours - true).max() < 2 * np.abs(theirs - true).max() + 1e-3


def test_scores_beyond_the_range_of_exp_stay_exact_blockwise(monkeypatch):
    """Oracle: the plain form. Scores rise or fall by hundreds over the blocks: exp would overflow without
    subtracting the largest score so far.
    """
    q, k, v = normal(0, 1, 24, 1, 6), normal(1, 1, 24, 1, 6), normal(2, 1, 24, 1, 5)
    for sign in (1, -1):
        slope = np.linspace(-300, 300, 24, dtype=np.float32)[None, :, None, None] * sign
        steep = np.concatenate([np.ones_like(slope), q], -1), np.concatenate([slope, k], -1)
        whole, blockwise = forms(monkeypatch, *steep, v, segment_ids=np.ones((1, 24), int))
        for ours, theirs in zip(blockwise, whole, strict=True):
            np.testing.assert_allclose(
                ours, theirs, atol=1e-3, rtol=1e-4
            )  # 300 x 300 x 2^-24: 5e-3


def test_long_rows_are_attended_blockwise_and_half_their_scores_left_out():
    """Oracle: the program itself: by default no array as large as all scores of a long row, and the products
    of n (n + 1) / 2 blocks of n^2.
    """
    t = 4 * size_of("attention_block")
    assert t > size_of("longest_whole_row")
    shapes = [jax.ShapeDtypeStruct((1, t, 2, 8), jnp.float32)] * 3
    ids = jax.ShapeDtypeStruct((1, t), jnp.int32)

    def traced(implementation):
        def loss(q, k, v, ids):
            options = dict(scale=SCALE, segment_ids=ids, implementation=implementation)
            return attend(q, k, v, **options).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(*shapes, ids)

    default, whole = traced(None), traced("whole")
    assert f"{t},{t}]" in str(whole.jaxpr) and f"{t},{t}]" not in str(default.jaxpr)
    one_product = 2 * 2 * t * t * 8
    assert matmul_flops(whole.jaxpr) == 6 * one_product
    assert matmul_flops(default.jaxpr) == 7 * one_product * (4 + 1) / 8


def test_a_scan_over_layers_keeps_no_masks_of_blocks(monkeypatch):
    """Oracle: the gradient's program: no array with an entry for each pair of blocks and each key of a block,
    which the masks of all pairs would be, made ahead of the first layer.
    """
    monkeypatch.setitem(SIZES, "attention_block", {"any": 8})
    ids = jnp.ones((1, 32), jnp.int32)  # 4 blocks, 10 pairs

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def layer(x, w):
        q = jnp.einsum("btd,dhx->bthx", x, w)
        return x + attend(q, q, q, scale=SCALE, segment_ids=ids, implementation="blockwise").sum(
            2
        ), None

    gradient = jax.grad(lambda ws, x: jax.lax.scan(layer, x, ws)[0].sum())
    program = str(jax.make_jaxpr(gradient)(jnp.ones((2, 6, 2, 6)), jnp.ones((1, 32, 6))))
    assert "scan[" in program and not re.search(r"\[10,[\d,]*8\]", program)


def branch_rows():
    """Two prompts of ragged length with three ragged completions each: q, k, v, segment_ids, Branches."""
    layout, length = Branches(5, 3), 4
    prefix = layout.prefix_length
    t = prefix + layout.branches * length
    q, k, v = normal(3, 2, t, 4, 6), normal(4, 2, t, 2, 6), normal(5, 2, t, 2, 3)
    seen = np.zeros((2, t), np.int32)
    for row, (prompt_length, lengths) in enumerate([(5, (4, 1, 2)), (2, (3, 4, 0))]):
        seen[row, :prompt_length] = 1
        for i, own in enumerate(lengths):
            seen[row, prefix + i * length : prefix + i * length + own] = 1
    return q, k, v, seen, layout


def rows_of_their_own(q, k, v, segment_ids, layout):
    """The same tokens, one row [prefix, branch i] at a time through attend: [b t h u]."""
    prefix, branches = layout
    length = (q.shape[1] - prefix) // branches
    pieces = []
    for i in range(branches):
        own = np.r_[:prefix, prefix + i * length : prefix + (i + 1) * length]
        out = attend(q[:, own], k[:, own], v[:, own], scale=SCALE, segment_ids=segment_ids[:, own])
        pieces += [out] if i == 0 else [out[:, prefix:]]
    return jnp.concatenate(pieces, axis=1)


def shared(q, k, v, segment_ids, layout):
    return attend_branches(q, k, v, scale=SCALE, segment_ids=segment_ids, layout=layout)


def test_branches_see_the_prefix_and_themselves():
    """Oracle: a row of its own for each branch, by attend; padding in prefix and branches."""
    q, k, v, seen, layout = branch_rows()
    real = seen[..., None, None] > 0
    ours, theirs = (f(q, k, v, seen, layout) * real for f in (shared, rows_of_their_own))
    np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_branch_gradients_are_those_of_rows_of_their_own():
    """Oracle: autodiff through a row of its own for each branch; the prefix's gradients add up."""
    q, k, v, seen, layout = branch_rows()
    probe = normal(6, *q.shape[:3], v.shape[-1]) * (seen[..., None, None] > 0)

    def gradients(form):
        def value(*qkv):
            return (form(*qkv, seen, layout) * probe).sum()

        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))(q, k, v)

    for ours, theirs in zip(gradients(shared), gradients(rows_of_their_own), strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_padding_of_prefix_and_branches_reaches_no_real_token():
    """Oracle: invariant: other keys and values there leave real outputs bit for bit as they were."""
    q, k, v, seen, layout = branch_rows()
    padding = seen[..., None, None] == 0
    ours = shared(q, k, v, seen, layout)
    other = shared(q, np.where(padding, 50, k), np.where(padding, -9, v), seen, layout)
    np.testing.assert_array_equal(np.where(padding, 0, ours), np.where(padding, 0, other))


def test_attend_cached_is_one_query_over_the_masked_cache():
    """Oracle: the definition by a numpy loop; the mask is no prefix, as in a ring of slots."""
    q, k, v = normal(7, 2, 4, 6), normal(8, 4, 7, 6), normal(9, 4, 7, 5)
    mask = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0, 0]], bool)
    ours = attend_cached(q, k, v, scale=SCALE, mask=mask)
    for row, head in np.ndindex(2, 4):
        at = 2 * row + head // 2, mask[row]  # two key heads a sequence
        keys, values = k[at], v[at]
        np.testing.assert_allclose(ours[row, head], one_query(q[row, head], keys, values), **CLOSE)


def test_attend_latent_equals_attention_over_expanded_keys_and_values():
    """Oracle: arXiv:2405.04434, eqs. 10-11 and 15-18, expanded per head, by the numpy loop."""
    b, h, n, r, c, s, u = 2, 3, 4, 2, 5, 6, 3
    q_nope, q_rope, c_kv, k_rope = (
        normal(0, b, h, n),
        normal(1, b, h, r),
        normal(2, b, s, c),
        normal(3, b, s, r),
    )
    w_k, w_v = normal(4, c, h, n), normal(5, c, h, u)
    mask = np.array([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1]], bool)
    q_latent = np.einsum("bhn,chn->bhc", q_nope, w_k)
    queries, latents = (np.concatenate(parts, -1) for parts in ((q_latent, q_rope), (c_kv, k_rope)))
    latent = attend_latent(queries, latents, kv_lora_rank=c, scale=SCALE, mask=mask)
    ours = np.einsum("bhc,chu->bhu", latent, w_v)
    for row, head in np.ndindex(b, h):
        keys = np.concatenate([c_kv[row] @ w_k[:, head], k_rope[row]], axis=-1)[mask[row]]
        query = np.concatenate([q_nope[row, head], q_rope[row, head]])
        exact = one_query(query, keys, (c_kv[row] @ w_v[:, head])[mask[row]])
        np.testing.assert_allclose(ours[row, head], exact, atol=1e-5, rtol=1e-4)


def test_attention_over_gathered_latents_is_that_under_their_mask():
    """Oracle: attend_latent with a mask of the chosen slots; one query has fewer of them."""
    q, latents = normal(0, 2, 3, 7), normal(1, 2, 6, 7)
    chosen = np.array([[0, 2, 5], [1, 4, 5]]), np.array([[1, 1, 1], [1, 1, 0]], bool)
    mask = np.array([[1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0]], bool)
    options = dict(kv_lora_rank=5, scale=SCALE)
    ours = attend_latent_selected(q, latents, chosen, **options)
    np.testing.assert_allclose(ours, attend_latent(q, latents, mask=mask, **options), **CLOSE)


def test_a_query_that_may_see_nothing_stays_finite():
    """Oracle: no NaN and no infinity, in values and gradients, under a mask without a True."""
    mask = jnp.zeros((1, 4), bool)

    def value(q, k, v):
        return attend_cached(q, k, v, scale=SCALE, mask=mask).sum()

    grads = jax.value_and_grad(value, argnums=(0, 1, 2))(
        normal(0, 1, 2, 3), normal(1, 1, 4, 3), normal(2, 1, 4, 3)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    latent = attend_latent(
        normal(0, 1, 2, 5), normal(2, 1, 4, 5), kv_lora_rank=3, scale=SCALE, mask=mask
    )
    assert np.isfinite(latent).all()
