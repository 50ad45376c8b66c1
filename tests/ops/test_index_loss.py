"""The indexer's loss against a brute-force loop, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.ops.index_loss import index_loss
from deepseek_jax.ops.platform import SIZES
from deepseek_jax.ops.selection import select_rows, unpacked
from tests.ops.test_attention import SCALE, normal
from tests.ops.test_selection import blocks_of_8, index_of, rows_of_three


def loop_loss(index, attention, segments, chosen):
    """(float64[b t], gradients by q, k and w) by a loop over tokens in torch, chosen: bool[b t s]."""
    q, k, w = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in index)
    queries, keys = (torch.tensor(a, dtype=torch.float64) for a in attention)
    losses = torch.zeros(segments.shape, dtype=torch.float64)
    for row, t in np.ndindex(segments.shape):
        s = np.flatnonzero(chosen[row, t])
        if not segments[row, t]:
            continue
        shares = 0
        for head in range(queries.shape[2]):
            shares = shares + torch.softmax(
                keys[row, s, head] @ queries[row, t, head] * SCALE, dim=0
            )
        shares = shares / shares.sum()
        products = torch.relu(k[row, s] @ q[row, t].T / q.shape[-1] ** 0.5)
        logs = torch.log_softmax(products @ w[row, t], dim=0)
        losses[row, t] = (shares * (shares.log() - logs)).sum()
    losses.sum().backward()
    return losses.detach().numpy(), [a.grad.numpy() for a in (q, k, w)]


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
@pytest.mark.parametrize("topk", [None, 4, 40], ids=["dense", "sparse", "short"])
def test_the_loss_is_the_divergence_from_attention(monkeypatch, topk, blocks):
    """Oracle: the definition by a loop over tokens, in float64, and autograd through it. Packed documents and
    padding; a top-k of 40 covers the row of 29, where the loss must train too.
    """
    if blocks:
        blocks_of_8(monkeypatch)
    t = 29
    index, segments = index_of(2, t), rows_of_three(t)
    attention = normal(5, 2, t, 4, 6), normal(6, 2, t, 4, 6)
    bits = None
    chosen = np.tril(np.ones((t, t), bool)) & (segments[:, :, None] == segments[:, None])
    if topk:
        bits = select_rows(*index, segments, segments, first=0, index_topk=topk)
        chosen = np.asarray(unpacked(bits, t))
    exact, gradients = loop_loss(index, attention, segments, chosen)

    def total(index, attention):
        losses_bt = index_loss(index, attention, segments, segments, bits, first=0, scale=SCALE)
        return losses_bt.sum(), losses_bt

    ours, losses_bt = jax.grad(total, argnums=(0, 1), has_aux=True)(index, attention)
    np.testing.assert_allclose(losses_bt, exact, atol=2e-6, rtol=2e-5)
    for mine, theirs in zip(ours[0], gradients, strict=True):
        assert np.abs(theirs).max() > 1e-2
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-4)
    # Attention is the target: it learns nothing from this
    assert not any(np.asarray(a).any() for a in ours[1])


def test_a_long_row_has_no_scores_of_all_its_queries():
    """Oracle: the gradient's program: no array with all of a row's queries and keys."""
    t = 4 * SIZES["attention_block"]["cpu"]
    assert t > SIZES["longest_whole_row"]["cpu"]
    of_index, of_attention = [(1, t, 2, 8), (1, t, 8), (1, t, 2)], [(1, t, 2, 8)] * 2
    index, attention = (
        [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        for shapes in (of_index, of_attention)
    )
    ids = jax.ShapeDtypeStruct((1, t), jnp.int32)

    def total(index, attention, ids):
        bits = select_rows(*index, ids, ids, first=0, index_topk=4)
        return index_loss(index, attention, ids, ids, bits, first=0, scale=1.0).sum()

    program = str(jax.jit(jax.grad(total)).trace(index, attention, ids).jaxpr)
    assert f"{t},{t}]" not in program and f"{t},{t // 8}]" in program
