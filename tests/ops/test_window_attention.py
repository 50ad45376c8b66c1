"""Attention over windows, entries and a sink against loops over queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.compress import find_windows, seen_entries
from deepseek_jax.ops.index_loss import entry_loss
from deepseek_jax.ops.selection import unpacked
from deepseek_jax.ops.window_attention import (
    Entries,
    Keys,
    attend_seen,
    attend_window,
    select_entries,
)
from tests.ops.test_attention import CLOSE, SCALE, normal
from tests.ops.test_compress import SEGMENTS, SIZE, positions_of
from tests.ops.test_selection import blocks_of_8, loop_scores, loop_select

B, T, H, X, WINDOW = 2, 25, 3, 6, 5
WINDOWS = find_windows(positions_of(SEGMENTS), SEGMENTS, SIZE)
SEEN = np.asarray(seen_entries(SEGMENTS, np.arange(T), WINDOWS))


def operands():
    """(q, kv, entries, sink)."""
    return normal(0, B, T, H, X), normal(1, B, T, X), normal(2, B, T // SIZE, X), normal(3, H)


def loop_attend(q, kv, entries, sink, attended):
    """The definition in float64: one softmax over window, attended entries and the sink."""
    out = np.zeros(q.shape)
    for row, t, head in np.ndindex(B, T, H):
        window = [s for s in range(max(t - WINDOW + 1, 0), t + 1)]
        window = [s for s in window if SEGMENTS[row, s] == SEGMENTS[row, t]]
        keys = np.concatenate([kv[row, window], entries[row, np.flatnonzero(attended[row, t])]])
        keys = keys.astype(np.float64)
        weights = np.exp(keys @ q[row, t, head] * SCALE)
        out[row, t, head] = weights @ keys / (weights.sum() + np.exp(sink[head]))
    return out


def random_selection(seed=9):
    """(uint8[b t z], bool[b t w]): about half of all entries."""
    chosen = np.random.default_rng(seed).random(SEEN.shape) < 0.5
    return np.packbits(chosen, axis=-1), chosen


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
@pytest.mark.parametrize("what", ["window", "entries", "selected"])
def test_one_softmax_is_over_window_entries_and_sink(monkeypatch, what, blocks):
    """Oracle: the definition by a loop over queries. Packed documents and padding."""
    if blocks:
        blocks_of_8(monkeypatch)
    q, kv, entries, sink = operands()
    bits, chosen = random_selection()
    attended = dict(window=0 * SEEN, entries=SEEN, selected=SEEN & chosen)[what]
    all_entries = Entries(entries, WINDOWS, bits if what == "selected" else None)
    keys = Keys(kv, SEGMENTS, sink, None if what == "window" else all_entries)
    ours = attend_window(q, keys, window=WINDOW, scale=SCALE)
    np.testing.assert_allclose(ours, loop_attend(q, kv, entries, sink, attended), **CLOSE)


@pytest.mark.parametrize("has_entries", [False, True])
def test_keys_by_mask_are_attended_to_as_windows_are(has_entries):
    """Oracle: the definition by a loop over queries, of which a mask has every token's window."""
    q, kv, entries, sink = operands()
    age = np.arange(T)[:, None] - np.arange(T)
    is_seen = (age >= 0) & (age < WINDOW) & (SEGMENTS[:, :, None] == SEGMENTS[:, None])
    seen = [(kv, is_seen), (entries, SEEN)][: 1 + has_entries]
    ours = attend_seen(q, sink, *seen, scale=SCALE)
    exact = loop_attend(q, kv, entries, sink, SEEN * has_entries)
    np.testing.assert_allclose(ours, exact, **CLOSE)


def test_blocks_have_the_gradients_of_whole_rows(monkeypatch):
    """Oracle: the whole row, whose values a loop holds; sums of float32 in another order."""
    bits, _ = random_selection()
    probe = normal(4, B, T, H, X)

    def gradients():
        def value(q, kv, entries, sink):
            keys = Keys(kv, SEGMENTS, sink, Entries(entries, WINDOWS, bits))
            return (attend_window(q, keys, window=WINDOW, scale=SCALE) * probe).sum()

        return jax.jit(jax.grad(value, argnums=(0, 1, 2, 3)))(*operands())

    whole = gradients()
    blocks_of_8(monkeypatch)
    for ours, other in zip(gradients(), whole, strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(ours, other, atol=2e-6 * np.abs(other).max(), rtol=2e-5)


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
def test_a_query_selects_the_best_of_the_entries_that_it_sees(monkeypatch, blocks):
    """Oracle: the scores by a numpy loop, and a stable sort of those that may be seen."""
    if blocks:
        blocks_of_8(monkeypatch)
    q, k, w = normal(0, B, T, 2, 4), normal(1, B, T // SIZE, 4), normal(2, B, T, 2)
    bits = select_entries(q, k, w, SEGMENTS, WINDOWS, index_topk=1)
    exact = loop_select(loop_scores(q, k, w), SEEN, 1)
    assert (exact.sum(-1) < SEEN.sum(-1)).any()
    np.testing.assert_array_equal(unpacked(bits, T // SIZE), exact)


def test_no_query_selects_where_all_entries_are_few_enough():
    """Oracle: by hand: 6 entries, of which 6 are attended to."""
    q, k, w = normal(0, B, T, 2, 4), normal(1, B, T // SIZE, 4), normal(2, B, T, 2)
    assert select_entries(q, k, w, SEGMENTS, WINDOWS, index_topk=T // SIZE) is None


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
def test_queries_of_a_part_of_a_row_are_as_in_the_whole_row(monkeypatch, blocks):
    """Oracle: the whole row, whose values loops hold: attention, selection and index loss of tokens 10
    to 19, with the keys of all.
    """
    if blocks:
        blocks_of_8(monkeypatch)
    q, kv, entries, sink = operands()
    bits, _ = random_selection()
    index = normal(5, B, T, 2, 4), normal(6, B, T // SIZE, 4), normal(7, B, T, 2)

    def results(part, first):
        keys = Keys(kv, SEGMENTS, sink, Entries(entries, WINDOWS, bits[:, part]))
        all_keys = keys._replace(entries=keys.entries._replace(selected=None))
        own = index[0][:, part], index[1], index[2][:, part]
        options = dict(window=WINDOW, scale=SCALE, first=first)
        return (
            attend_window(q[:, part], keys, **options),
            entry_loss(own, q[:, part], all_keys, **options),
            select_entries(*own, SEGMENTS[:, part], WINDOWS, index_topk=1, first=first),
        )

    part = slice(10, 20)
    *ours, selected = jax.jit(lambda first: results(part, first))(10)
    *exact, all_selected = results(slice(0, T), 0)
    for own, other in zip(ours, exact, strict=True):
        np.testing.assert_allclose(own, other[:, part], **CLOSE)
    np.testing.assert_array_equal(selected, all_selected[:, part])
    assert np.asarray(exact[1])[:, part].any() and np.asarray(selected).any()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_memory_grows_with_the_row_and_not_with_its_square(direction):
    """Oracle: the bytes that XLA reserves between arguments and results, for rows of 2,048 and 4,096
    tokens. All scores of the longer one would be 64 times its queries.
    """

    def reserved(t):
        segments = np.ones((1, t), np.int32)
        windows = find_windows(np.arange(t)[None], segments, 128)

        def value(q, kv, entries, sink):
            keys = Keys(kv, segments, sink, Entries(entries, windows, None))
            return jnp.square(attend_window(q, keys, window=128, scale=SCALE)).sum()

        function = jax.grad(value, argnums=(0, 1)) if direction == "backward" else value
        shapes = (1, t, 2, 64), (1, t, 64), (1, t // 128, 64), (2,)
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        compiled = jax.jit(function).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    queries = 4096 * 2 * 64 * 4
    short, long = reserved(2048), reserved(4096)
    assert long < 2.2 * short and long < 8 * queries
