"""The indexer's loss against a brute-force loop, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.ops.compress import find_windows, seen_entries
from deepseek_jax.ops.index_loss import entry_loss, index_loss
from deepseek_jax.ops.platform import SIZES
from deepseek_jax.ops.selection import select_rows, unpacked
from deepseek_jax.ops.window_attention import Entries, Keys
from tests.ops.test_attention import SCALE, normal
from tests.ops.test_compress import SEGMENTS, SIZE, positions_of
from tests.ops.test_selection import blocks_of_8, index_of, rows_of_three
from tests.quick import others_slow


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


# The blockwise form is that of long rows, and of others the whole one
@pytest.mark.parametrize("blocks", others_slow([False, True], True), ids=["whole", "blocks"])
@pytest.mark.parametrize("topk", others_slow([None, 4, 40], 4), ids=["dense", "sparse", "short"])
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

    ours, losses_bt = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(index, attention)
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


def loop_entry_loss(index, q, kv, entries, sink, chosen, window):
    """(float64[b t], gradients by the index's q, k and w) by a loop over tokens in torch."""
    q_index, k, w = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in index)
    q, kv, entries, sink = (torch.tensor(a, dtype=torch.float64) for a in (q, kv, entries, sink))
    losses = torch.zeros(SEGMENTS.shape, dtype=torch.float64)
    for row, t in np.ndindex(SEGMENTS.shape):
        of_entries = np.flatnonzero(chosen[row, t])
        if not len(of_entries):
            continue
        window_keys = [s for s in range(max(t - window + 1, 0), t + 1)]
        window_keys = [s for s in window_keys if SEGMENTS[row, s] == SEGMENTS[row, t]]
        keys = torch.cat([entries[row, of_entries], kv[row, window_keys]])
        scores = torch.cat([q[row, t] @ keys.T * SCALE, sink[:, None]], dim=1)
        shares = torch.softmax(scores, dim=1)[:, : len(of_entries)].sum(0)
        shares = shares / shares.sum()
        products = torch.relu(k[row, of_entries] @ q_index[row, t].T / q_index.shape[-1] ** 0.5)
        logs = torch.log_softmax(products @ w[row, t], dim=0)
        losses[row, t] = (shares * (shares.log() - logs)).sum()
    losses.sum().backward()
    return losses.detach().numpy(), [a.grad.numpy() for a in (q_index, k, w)]


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_the_loss_of_entries_is_the_divergence_from_attentions_share_of_them(
    monkeypatch, sparse, blocks
):
    """Oracle: the definition by a loop over tokens, in float64, and autograd through it. Packed documents and
    padding; the shares are of one softmax with the window and the sink.
    """
    if blocks:
        blocks_of_8(monkeypatch)
    b, t = SEGMENTS.shape
    windows = find_windows(positions_of(SEGMENTS), SEGMENTS, SIZE)
    chosen = np.asarray(seen_entries(SEGMENTS, np.arange(t), windows))
    selection = np.random.default_rng(3).random(chosen.shape) < 0.6
    index = normal(0, b, t, 2, 4), normal(1, b, t // SIZE, 4), normal(2, b, t, 2)
    q, kv, entries, sink = (
        normal(3, b, t, 3, 6),
        normal(4, b, t, 6),
        normal(5, b, t // SIZE, 6),
        normal(6, 3),
    )
    bits = np.packbits(selection, axis=-1) if sparse else None
    keys = Keys(kv, SEGMENTS, sink, Entries(entries, windows, bits))

    def value(index, q):
        losses = entry_loss(index, q, keys, window=5, scale=SCALE)
        return losses.sum(), losses

    (by_index, by_q), losses = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))(index, q)
    chosen = chosen & selection if sparse else chosen
    exact, exact_gradients = loop_entry_loss(index, q, kv, entries, sink, chosen, 5)
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose(losses, exact, atol=1e-5)
    for ours, other in zip(by_index, exact_gradients, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)
    assert not np.asarray(by_q).any()
