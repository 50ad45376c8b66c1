"""Attention over gathered keys against the masked form and a loop, value and gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from deepseek_jax.ops.attention import attend
from deepseek_jax.ops.index_loss import index_loss
from deepseek_jax.ops.platform import SIZES
from deepseek_jax.ops.selected import Queries, attend_selected, over_selected
from deepseek_jax.ops.selection import select_rows, select_slots, unpacked
from tests.ops.test_attention import SCALE, normal
from tests.ops.test_index_loss import loop_loss
from tests.ops.test_selection import blocks_of_8, index_of, rows_of_three
from tests.quick import others_slow

B, T, H, C, R = 2, 29, 4, 6, 3


def arrays_of(t=T):
    """Queries [b t h c+r], latents [b t c+r], and the operands of the indexer."""
    return normal(5, B, t, H, C + R), normal(6, B, t, C + R), index_of(B, t)


def gathered(q, latents, index, segments, topk, form="plain"):
    """(weighted latents, the indexer's loss) by the form under test."""
    index_q, index_k, index_w = index
    slots = select_slots(*index, segments, segments, first=0, index_topk=topk)
    queries, keys = Queries(q, index_q, index_w), jnp.concatenate([latents, index_k], axis=-1)
    options = dict(kv_lora_rank=C, scale=SCALE, implementation=form)
    return attend_selected(queries, keys, slots, **options)


def masked(q, latents, index, segments, topk):
    """The same by attention over all keys of a row under a mask."""
    bits = select_rows(*index, segments, segments, first=0, index_topk=topk)
    k = latents[:, :, None]
    out = attend(q, k, k[..., :C], scale=SCALE, segment_ids=segments, selected=bits)
    attention = q, jnp.repeat(k, H, axis=2)
    return out, index_loss(index, attention, segments, segments, bits, first=0, scale=SCALE)


BLOCKS = {"one": 1, "blocks_of_3": 3 * 2 * 4, "whole": 2**20}
CASES = list(itertools.product(["plain", "interpreted"], [1, 4, 12], BLOCKS))
BY_DEFAULT = ("plain", 1, "one"), ("plain", 4, "whole"), ("plain", 12, "blocks_of_3")


@pytest.mark.parametrize(
    "form, topk, blocks", others_slow(CASES, *BY_DEFAULT, ("interpreted", 12, "blocks_of_3"))
)
def test_gathered_keys_give_what_masked_keys_give(monkeypatch, form, topk, blocks):
    """Oracle: the masked form, outputs to 1e-5 and gradients to 1e-4. Packed documents and padding; two index
    heads, so that ties decide; a document of 5 tokens is shorter than a selection of 12; a last block that
    is not full. The kernels are emulated.
    """
    monkeypatch.setitem(SIZES, "selected_rows_alive", {"any": BLOCKS[blocks] * topk})
    arrays, segments = arrays_of(), rows_of_three(T)
    probe, weights = normal(7, B, T, H, C), np.abs(normal(8, B, T))
    real = segments > 0

    def value(by, arrays):
        out, loss = by(*arrays, segments, topk)
        # Attention's results of padding are of no use
        out = jnp.where(real[..., None, None], out, 0)
        return (out * probe).sum() + (loss * weights).sum(), (out, loss)

    ours, theirs = (
        jax.jit(jax.grad(functools.partial(value, by), has_aux=True))(arrays)
        for by in (functools.partial(gathered, form=form), masked)
    )
    for mine, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5, rtol=1e-5)
    for mine, other in zip(*map(jax.tree.leaves, (ours[0], theirs[0])), strict=True):
        assert topk == 1 or np.abs(other).max() > 1e-2
        np.testing.assert_allclose(mine, other, atol=1e-4 * max(np.abs(other).max(), 1e-2), rtol=0)


def test_gathered_keys_are_attended_to_as_tokamax_does():
    """Oracle: tokamax's reference of sparse MLA, with FP8 keys in pages, without a sink and a window. A query
    that selected fewer keys than others; and each key's value is the whole key.
    """
    sparse = pytest.importorskip(
        "tokamax._src.ops.sparse_mla.reference", reason="needs tokamax, which needs Python 3.12"
    )
    layout = pytest.importorskip("tokamax._src.ops.dsv4_compressor.csa_cache_layout")
    t, keys, page, topk, width = 12, 32, 8, 6, sparse.HEAD_DIM
    rng = np.random.default_rng(0)
    slots = np.stack([rng.permutation(keys)[:topk] for _ in range(t)])
    slots[3, 2:] = -1
    nope = normal(1, keys, sparse.NOPE_DIM).astype(ml_dtypes.float8_e4m3fn)
    rope = normal(2, keys, sparse.ROPE_DIM).astype(ml_dtypes.bfloat16)
    # Behind the bytes of a key: the exponents of its scales, 1 here
    cache = np.concatenate([nope.view(np.uint8), np.full((keys, 64), 127, np.uint8)], axis=-1)
    q, none = normal(0, t, H, width) / 8, np.full((t, H), -1e30, np.float32)
    theirs = sparse.sparse_ragged_paged_attention(
        q,
        layout.slabs_to_words(jnp.asarray(cache.reshape(-1, page, 4, 128))),
        layout.encode_rope(jnp.asarray(rope)).reshape(-1, page // 4, layout.ROW_WORDS),
        slots,
        np.arange(keys // page),
        np.array([0, t]),
        np.array([0, 0, 1]),
        none[0],
        np.zeros((t, H, width), np.float32),
        np.zeros((t, H), np.float32),
        none,
        sm_scale=SCALE,
    )
    latents = np.concatenate([np.float32(nope), np.float32(rope)], axis=-1)
    queries = Queries(q[None], None, None)
    ours, _ = attend_selected(queries, latents[None], slots[None], kv_lora_rank=width, scale=SCALE)
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-5, atol=1e-5)


def test_the_definition_by_a_loop():
    """Oracle: a loop over tokens and heads in torch, in float64, and autograd through it."""
    (q, latents, index), segments, topk = arrays_of(), rows_of_three(T), 4
    bits = select_rows(*index, segments, segments, first=0, index_topk=topk)
    chosen = np.asarray(unpacked(bits, T)) & (segments > 0)[..., None]
    out = torch.zeros(B, T, H, C, dtype=torch.float64)
    q64, latents64 = (
        torch.tensor(np.array(a), dtype=torch.float64, requires_grad=True) for a in (q, latents)
    )
    for row, t in np.ndindex(segments.shape):
        keys = latents64[row, np.flatnonzero(chosen[row, t])]
        for head in range(H):
            weights = torch.softmax(keys @ q64[row, t, head] * SCALE, dim=0)
            out[row, t, head] = weights @ keys[:, :C]
    probe = normal(7, B, T, H, C)
    (out * torch.tensor(np.array(probe))).sum().backward()
    attention = q, jnp.repeat(latents[:, :, None], H, axis=2)
    losses, by_index = loop_loss(index, attention, segments, chosen)

    def value(q, latents, index):
        ours, loss = gathered(q, latents, index, segments, topk)
        return (ours * probe).sum() + loss.sum(), (ours, loss)

    gradient = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))
    gradients, (ours, loss) = gradient(q, latents, index)
    np.testing.assert_allclose(ours, out.detach(), atol=2e-6, rtol=0)
    np.testing.assert_allclose(loss, losses, atol=2e-6, rtol=2e-5)
    np.testing.assert_allclose(gradients[0], q64.grad, atol=1e-5, rtol=0)
    np.testing.assert_allclose(gradients[1], latents64.grad, atol=1e-5, rtol=0)
    for mine, theirs in zip(gradients[2], by_index, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-4)


def test_slots_are_the_bits_in_order(monkeypatch):
    """Oracle: select_rows, whose bits numpy lists; in blocks of 8, from the 16th token of a row on."""
    blocks_of_8(monkeypatch)
    (q, k, w), segments = index_of(B, T), rows_of_three(T)
    operands = q[:, 16:], k, w[:, 16:], segments[:, 16:], segments
    bits = select_rows(*operands, first=16, index_topk=5)
    slots = np.asarray(select_slots(*operands, first=16, index_topk=5))
    chosen = np.asarray(unpacked(bits, T)) & (segments[:, 16:] > 0)[..., None]
    assert (chosen.sum(-1) == 5).any() and not chosen.all(-1).any()
    for at in np.ndindex(chosen.shape[:2]):
        keys = np.flatnonzero(chosen[at])
        np.testing.assert_array_equal(slots[at], [*keys, *[-1] * (5 - len(keys))])


def test_gradients_of_keys_add_up_in_float32():
    """Oracle: float64 numpy. 4,096 queries select one bfloat16 key each; a bfloat16 sum would stop at 256."""
    queries = jnp.ones((1, 4096, 1, 1), jnp.bfloat16)
    keys = jnp.ones((1, 2, 1), jnp.bfloat16)
    slots = jnp.zeros((1, 4096, 1), jnp.int32)

    def value(keys):
        product = over_selected(lambda q, rows, _: q * rows, queries, keys, slots)
        return product.sum(dtype=jnp.float32)

    np.testing.assert_array_equal(jax.grad(value)(keys)[0, :, 0], [4096, 0])


def test_a_model_whose_indexer_does_not_learn_has_no_loss():
    """Oracle: the results with one, and None."""
    (q, latents, index), segments = arrays_of(), rows_of_three(T)
    slots = select_slots(*index, segments, segments, first=0, index_topk=4)
    out, loss = attend_selected(Queries(q, None, None), latents, slots, kv_lora_rank=C, scale=SCALE)
    assert loss is None
    np.testing.assert_array_equal(out, gathered(q, latents, index, segments, 4)[0])


def test_no_array_of_the_gradient_has_all_queries_and_all_keys():
    """Oracle: the gradient's program."""
    t = 1024
    shapes = (1, t, 2, 9), (1, t, 2, 8), (1, t, 2), (1, t, 9 + 8)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    slots = jax.ShapeDtypeStruct((1, t, 16), jnp.int32)

    def value(arrays, slots):
        *queries, keys = arrays
        results = attend_selected(Queries(*queries), keys, slots, kv_lora_rank=6, scale=1.0)
        return sum(x.sum() for x in results)

    program = str(jax.jit(jax.grad(value)).trace(arrays, slots).jaxpr)
    assert f"{t},{t}]" not in program and f",{t},16" in program
