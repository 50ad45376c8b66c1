"""Windows and their entries against loops over documents."""

import numpy as np
import pytest

from deepseek_jax.ops.compress import document_windows, find_windows, pool, seen_entries
from tests.ops.test_attention import normal

CLOSE = dict(atol=2e-6, rtol=2e-5)  # float32 rounding
SIZE = 4
# Documents of 9, 3, 8 and 5 tokens; padding left, between and right; no border at a multiple of SIZE
SEGMENTS = np.array(
    [[0] * 3 + [1] * 9 + [2] * 3 + [0] * 2 + [3] * 8, [7] * 5 + [8] * 9 + [0] * 11], np.int32
)
DOCUMENTS = {
    (0, 1): 3,
    (0, 2): 12,
    (0, 3): 17,
    (1, 7): 0,
    (1, 8): 5,
}  # (row, segment): its first index


def positions_of(segments):
    positions = np.zeros(segments.shape, np.int32)
    for row, t in np.ndindex(segments.shape):
        if t and segments[row, t] == segments[row, t - 1]:
            positions[row, t] = positions[row, t - 1] + 1
    return positions


def loop_entries(values, logits, bias, size):
    """The entries of one document, float64[w x], window by window and channel by channel.

    values and logits [t z x], bias [size z x], z of 1 or 2: with 2, series 0 is of the window before.
    """
    series, width = values.shape[1:]
    found = []
    for start in range(0, len(values) - size + 1, size):
        entry = np.zeros(width)
        for channel in range(width):
            slots = [(start + j, j, series - 1) for j in range(size)]
            if series == 2 and start:
                slots += [(start - size + j, j, 0) for j in range(size)]
            weights = np.exp(
                [float(logits[t, z, channel]) + bias[j, z, channel] for t, j, z in slots]
            )
            summed = [
                w * values[t, z, channel] for w, (t, _, z) in zip(weights, slots, strict=True)
            ]
            entry[channel] = sum(summed) / weights.sum()
        found.append(entry)
    return np.array(found).reshape(-1, width)


@pytest.mark.parametrize("size", [1, 3, 4, 8, 26])
def test_windows_are_counted_inside_each_document(size):
    """Oracle: a loop over documents; windows of 26 are longer than the row."""
    positions = positions_of(SEGMENTS)
    windows = find_windows(positions, SEGMENTS, size)
    assert windows.tokens.shape == (2, 25 // size, size)
    for row in range(2):
        exact = []
        for (of_row, segment), start in DOCUMENTS.items():
            length = (SEGMENTS[row] == segment).sum() if of_row == row else 0
            exact += [(start + i, i, segment, i > 0) for i in range(0, length - size + 1, size)]
        for place, (first, position, segment, follows) in enumerate(exact):
            np.testing.assert_array_equal(windows.tokens[row, place], first + np.arange(size))
            found = windows.positions[row, place], windows.segments[row, place]
            assert (*found, windows.follows[row, place]) == (position, segment, follows)
        # Empty places: of no document, and of indices that are there
        assert (np.asarray(windows.segments)[row, len(exact) :] == -1).all()
        assert not np.asarray(windows.follows)[row, len(exact) :].any()
        assert (np.asarray(windows.tokens) >= 0).all() and (np.asarray(windows.tokens) < 25).all()


def test_a_document_that_the_row_begins_within_has_only_whole_windows():
    """Oracle: by hand: tokens 6 to 13 of a document have the window of positions 8 to 11 alone."""
    positions, segments = np.arange(6, 14)[None], np.ones((1, 8), np.int32)
    windows = find_windows(positions, segments, 4)
    np.testing.assert_array_equal(windows.segments, [[1, -1]])
    np.testing.assert_array_equal(windows.tokens[0, 0], [2, 3, 4, 5])
    assert windows.positions[0, 0] == 8 and not windows.follows.any()


def test_a_query_sees_an_entry_from_the_last_token_of_its_window_on():
    """Oracle: entry i of a document is seen from its position 4 i + 3 on, and in no other document."""
    positions = positions_of(SEGMENTS)
    windows = find_windows(positions, SEGMENTS, SIZE)
    seen = seen_entries(SEGMENTS, np.arange(25), windows)
    for row, t, w in np.ndindex(seen.shape):
        segment = SEGMENTS[row, t]
        is_of_document = segment > 0 and windows.segments[row, w] == segment
        finished = windows.positions[row, w] // SIZE < (positions[row, t] + 1) // SIZE
        assert seen[row, t, w] == (is_of_document and finished)


@pytest.mark.parametrize("series", [1, 2])
def test_entries_are_softmax_sums_of_their_own_documents(series):
    """Oracle: the definition by a loop, document by document, in float64."""
    values, logits = normal(0, 2, 25, series, 3), normal(1, 2, 25, series, 3)
    bias = normal(2, SIZE, series, 3)
    windows = find_windows(positions_of(SEGMENTS), SEGMENTS, SIZE)
    entries = pool(values, logits, bias, windows)
    for (row, segment), start in DOCUMENTS.items():
        document = slice(start, start + (SEGMENTS[row] == segment).sum())
        exact = loop_entries(values[row, document], logits[row, document], bias, SIZE)
        ours = entries[row][np.asarray(windows.segments[row]) == segment]
        np.testing.assert_allclose(ours, exact, **CLOSE)


@pytest.mark.parametrize("series", [1, 2])
def test_entries_of_a_ring_are_those_of_the_document(series):
    """Oracle: the entries of the whole document, by a loop. A ring of one window, or of two where they
    overlap, has the latest tokens, token t at t modulo its length.
    """
    values, logits = normal(0, 1, 12, series, 3), normal(1, 1, 12, series, 3)
    bias, ring = normal(2, SIZE, series, 3), SIZE * series
    exact = loop_entries(values[0], logits[0], bias, SIZE)
    numbers = np.arange(3)
    for number in numbers:
        last = number * SIZE + SIZE - 1
        latest = last - (last - np.arange(ring)) % ring
        own = document_windows(np.array([[number]]), SIZE)
        # Where the document has no token, anything may be
        rings = [
            np.where((latest >= 0)[:, None, None], a[:, latest], 9.0) for a in (values, logits)
        ]
        entry = pool(*rings, bias, own)
        np.testing.assert_allclose(entry[0, 0], exact[number], **CLOSE)


def test_the_windows_of_a_document_by_number_are_those_that_are_found():
    """Oracle: find_windows on the document."""
    found = find_windows(np.arange(13)[None], np.ones((1, 13), np.int32), SIZE)
    for own, other in zip(document_windows(np.arange(3)[None], SIZE), found, strict=True):
        np.testing.assert_array_equal(own, other)
