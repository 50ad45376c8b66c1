"""The kernels of the indexer's loss, in Pallas's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.index_loss import index_loss
from deepseek_jax.ops.pallas import index_loss as kernels
from tests.ops.test_attention import SCALE, normal
from tests.ops.test_index_loss import loop_loss
from tests.ops.test_selection import index_of, rows_of_three

T = 29


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "QUERIES", 8)
    monkeypatch.setattr(kernels, "KEYS", 12)


def operands():
    """The indexer's operands, attention's, and segments: packed documents and padding."""
    return index_of(2, T), (normal(5, 2, T, 4, 6), normal(6, 2, T, 4, 6)), rows_of_three(T)


@pytest.mark.parametrize("first", [0, 11])
def test_the_loss_and_its_gradient(small_tiles, first):
    """Oracle: the definition by a loop over tokens, in float64, and autograd through it. Rows have several
    tiles, and the last is not full; a device has only the queries from 11 on.
    """
    index, attention, segments = operands()
    chosen = np.tril(np.ones((T, T), bool)) & (segments[:, :, None] == segments[:, None])
    own = np.where(np.arange(T) >= first, segments, 0)
    exact, gradients = loop_loss(index, attention, own, chosen)

    def total(index, attention):
        (q, k, w), (q_attention, k_attention) = index, attention
        losses_bt = index_loss(
            (q[:, first:], k, w[:, first:]),
            (q_attention[:, first:], k_attention),
            segments[:, first:],
            segments,
            None,
            first=first,
            scale=SCALE,
            implementation="interpreted",
        )
        return losses_bt.sum(), losses_bt

    ours, losses_bt = jax.grad(total, argnums=(0, 1), has_aux=True)(index, attention)
    np.testing.assert_allclose(losses_bt, exact[:, first:], atol=2e-6, rtol=2e-5)
    for mine, theirs in zip(ours[0], gradients, strict=True):
        assert np.abs(theirs).max() > 1e-2
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-4)
    assert not any(np.asarray(a).any() for a in ours[1])


def test_each_token_has_a_weight_of_its_own(small_tiles):
    """Oracle: the plain form, with another factor for the loss of each token; bfloat16 operands."""
    index, attention, segments = jax.tree.map(jnp.asarray, operands())
    index = *(a.astype(jnp.bfloat16) for a in index[:2]), index[2]
    attention = tuple(a.astype(jnp.bfloat16) for a in attention)
    weights = jnp.abs(normal(9, *segments.shape))

    def total(index, implementation):
        losses_bt = index_loss(
            index,
            attention,
            segments,
            segments,
            None,
            first=0,
            scale=SCALE,
            implementation=implementation,
        )
        return (losses_bt * weights).sum()

    (ours, mine), (plain, theirs) = (
        jax.value_and_grad(total)(index, form) for form in ("interpreted", "plain")
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    for a, b in zip(mine, theirs, strict=True):
        a, b = np.float32(a), np.float32(b)
        # Gradients of products are rounded to bfloat16
        np.testing.assert_allclose(a, b, atol=2**-7 * np.abs(b).max())
