"""Attention over rows that a mesh splits by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import models
from deepseek_jax.models import ModelConfig, indexer
from deepseek_jax.models.decoder import segment_positions
from deepseek_jax.ops.attention import attend
from deepseek_jax.ops.compress import find_windows
from deepseek_jax.ops.window_attention import Entries, Keys
from deepseek_jax.parallel import constrain, make_mesh
from deepseek_jax.parallel.context import (
    attend_window_rows,
    by_rows,
    over_heads,
    over_queries,
)
from deepseek_jax.parallel.few_tokens import rows_split
from launch.planning.hlo import program_cost
from tests.quick import others_slow

ROWS = ("batch", "seq", "heads", None)
SPLIT = ("batch", "seq", None)


def attention(q, k, v, segment_ids):
    """As a layer calls it: tokens split before and after."""
    blockwise = functools.partial(attend, scale=0.3, implementation="blockwise")
    return over_heads(blockwise, *(constrain(x, ROWS) for x in (q, k, v)), segment_ids)


def operands(heads, kv_heads, t=256):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (2, t, h, x))
        for key, h, x in zip(keys, (heads, kv_heads, kv_heads), (16, 16, 8), strict=True)
    )
    segment_ids = jnp.asarray(np.repeat([[1, 2]], t // 2, axis=1).repeat(2, axis=0))
    return q, k, v, segment_ids


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 2)])
def test_attention_over_split_rows_is_that_of_whole_rows(heads, kv_heads):
    """Oracle: the op on one device, gradients too; 1e-5 is float32 in another order. Two key heads do not
    split four ways.
    """
    arrays = operands(heads, kv_heads)

    def loss(q, k, v):
        return jnp.square(attention(q, k, v, arrays[3])).mean()

    gradients = jax.grad(loss, argnums=(0, 1, 2))
    wanted = jax.jit(gradients)(*arrays[:3])
    with jax.set_mesh(make_mesh(data=1, context=4, tensor=2)):
        ours = jax.jit(gradients)(*arrays[:3])
    for one, other in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_each_device_multiplies_its_own_heads_alone():
    """Oracle: an eighth of what one device carries out, as XLA counts it, and the masks, which all make."""
    arrays = operands(8, 8)

    def flops(program):
        return program.lower(*arrays).compile().cost_analysis()["flops"]

    alone = flops(jax.jit(attention))
    with jax.set_mesh(make_mesh(data=1, context=8)):
        shared = flops(jax.jit(lambda *arrays: attention(*arrays)))
    assert shared < alone / 8 * 1.25


def test_nothing_travels_from_block_to_block():
    """Oracle: by hand, of a layer's update over 4 devices: q, k, v, the output and the gradients of all four
    go from tokens to heads or back. Segment ids are gathered, and the weights' gradients are summed. 36 pairs
    of blocks would multiply what is inside their loop.
    """
    weights, x = jnp.ones((4, 64, 8, 16)), jnp.ones((2, 1024, 64))
    segment_ids = jnp.ones((2, 1024), jnp.int32)

    def loss(weights, x, segment_ids):
        q, k, v = (jnp.einsum("btd,dhx->bthx", x, weights[i]) for i in range(3))
        out = attention(q, k, v, constrain(segment_ids, ("batch", "seq")))
        return jnp.square(constrain(jnp.einsum("bthx,dhx->btd", out, weights[3]), SPLIT)).mean()

    mesh = make_mesh(data=1, context=4, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        gradients = jax.jit(lambda weights, x, s: jax.grad(loss)(weights, constrain(x, SPLIT), s))
        program = gradients.lower(weights, x, segment_ids).compile()
    moved = program_cost(program.as_text(), mesh.shape).collectives
    array = 4 * 2 * 1024 * 8 * 16 / 4
    assert moved["all-to-all", ("context",)].wire_bytes == 8 * array * 3 / 4, moved
    gathered = moved["all-gather", ("context",)]
    assert gathered.count <= 2 and gathered.wire_bytes <= 2 * segment_ids.nbytes, moved
    assert moved["all-reduce", ("context",)].count == 1 and len(moved) == 3, moved


@pytest.mark.parametrize(("heads", "t"), others_slow([(4, 64), (3, 64), (4, 61)], (4, 64), (4, 61)))
def test_queries_attend_to_windows_and_entries_where_they_are(heads, t):
    """Oracle: the op on one device, and its gradients; three heads and 61 tokens do not split."""
    shapes = (2, t, heads, 8), (2, t, 8), (2, t // 4, 8), (heads,)
    arrays = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    segments = jnp.asarray((np.arange(t) > 20) + 1 - (np.arange(t) < 3))[None].repeat(2, axis=0)
    windows = find_windows(segment_positions(segments), segments, 4)
    selected = jnp.packbits(jax.random.bernoulli(jax.random.key(9), 0.5, (2, t, t // 4)), axis=-1)

    def loss(q, kv, entries, sink):
        keys = Keys(kv, segments, sink, Entries(entries, windows, selected))
        return jnp.square(attend_window_rows(q, keys, window=9, scale=0.3)).sum()

    gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))
    wanted = jax.jit(gradients)(*arrays)
    with jax.set_mesh(make_mesh(data=1, context=4, tensor=2)):
        ours = jax.jit(lambda *arrays: gradients(*arrays))(*arrays)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("t", [64, 61])
def test_each_device_selects_for_its_own_queries_what_whole_rows_select(t):
    """Oracle: the op on one device, and the indexer's loss and its gradient; 61 tokens do not split over
    eight devices.
    """
    config = ModelConfig(**models.deepseek_v3_2_tiny(), indexer_loss="sparse")
    q, k, w, attention = (
        jax.random.normal(jax.random.key(i), (2, t, *shape))
        for i, shape in enumerate([(2, 8), (8,), (2,), (4, 6)])
    )
    segment_ids = jnp.asarray((np.arange(t) > 20) + 1 - (np.arange(t) < 3))[None].repeat(2, axis=0)

    def run(index, attention):
        def loss(index):
            selected = indexer.select(config, index, segment_ids, None)
            both = attention, attention
            return indexer.loss(config, index, both, segment_ids, selected, 0.3), selected

        (value, selected), gradient = jax.value_and_grad(loss, has_aux=True)(index)
        return selected, value, gradient

    arrays = indexer.Index(q, k, w), attention
    wanted = jax.jit(run)(*arrays)
    with jax.set_mesh(make_mesh(data=1, context=4, tensor=2)):
        ours = jax.jit(lambda *arrays: run(*arrays))(*arrays)
    assert wanted[1] > 1
    np.testing.assert_array_equal(ours[0], wanted[0])
    for one, other in zip(jax.tree.leaves(ours[1:]), jax.tree.leaves(wanted[1:]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize(
    "rows, axis, own", [(8, "batch", 2), (8, "slots", 1), (6, "batch", 6), (None, "batch", 8)]
)
def test_each_device_computes_its_own_rows(rows, axis, own):
    """Oracle: by hand, on four devices of a batch and eight of slots: how many rows one call of the function
    has, and three times their numbers, in a loop that does not say over which devices it varies.
    """

    def function(arrays):
        x, calls = arrays["x"], len(arrays["x"])
        total = jax.lax.fori_loop(0, 3, lambda _, total: total + x, jnp.zeros(x.shape, x.dtype))
        return total, jnp.full(len(x), calls)

    arrays = {"x": jnp.arange(2.0 * (rows or 8)).reshape(-1, 2)}
    options = {} if axis == "batch" else {"axis": axis}
    mesh = make_mesh(data=4, tensor=2) if rows else make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        total, calls = jax.jit(lambda arrays: by_rows(function, arrays, **options))(arrays)
        assert rows_split(arrays["x"]) == (rows != 6)
    np.testing.assert_array_equal(total, 3 * arrays["x"])
    np.testing.assert_array_equal(calls, own)


@pytest.mark.parametrize(
    "sizes, rows, queries",
    [
        (dict(data=1, context=4, tensor=2), 3, 2),
        (dict(data=2, context=2, tensor=2), 2, 3),
        # Rows that do not split: whole rows on each device
        (dict(data=2, context=2, tensor=2), 3, 12),
        (dict(data=8), 8, 12),
        (None, 3, 12),
    ],
)
def test_each_device_has_its_own_queries_and_all_keys(sizes, rows, queries):
    """Oracle: by hand, of 12 queries and 5 keys: how many queries one call has, the place of each in its row,
    and the sum of the row's keys and of what all have whole, in a loop that does not say where it
    varies.
    """
    x = jnp.arange(12.0) + jnp.zeros((rows, 1))
    keys = jnp.arange(5.0 * rows).reshape(rows, 5)

    def function(own, keys, first, whole):
        assert keys.shape[1] == 5 and whole.shape == (3,)
        place = first + jnp.arange(own.shape[1]) + jnp.zeros(own.shape, int)
        total = jax.lax.fori_loop(0, 2, lambda _, t: t + keys.sum(1), jnp.zeros(len(keys)))
        return {
            "calls": jnp.full(own.shape, own.shape[1]),
            "place": place,
            "keys": own * 0 + total[:, None] + whole.sum(),
        }

    mesh = make_mesh(**sizes) if sizes else make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        whole = jnp.arange(3.0)
        found = jax.jit(lambda *arrays: over_queries(function, *arrays))(x, keys, whole)
    assert (found["calls"] == queries).all()
    np.testing.assert_array_equal(found["place"], np.broadcast_to(np.arange(12), (rows, 12)))
    np.testing.assert_array_equal(
        found["keys"], np.broadcast_to(2 * keys.sum(1)[:, None] + 3, (rows, 12))
    )
