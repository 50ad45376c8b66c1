"""Compression of keys: windows of tokens become one entry each (arXiv:2606.19348, section 2.3).

Windows are counted inside each document of a packed row, so that a document's entries do not depend
on its neighbours.

More dimension letters: w entry or its window, o token of a window, x width of an entry, z series.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Windows(NamedTuple):
    """The finished windows of each row, in order. Rows with fewer end with empty places.

    Attributes:
        tokens: int32[b w o], the indices in the row of a window's tokens.
        positions: int32[b w], the position of a window's first token, by which its entry is rotated.
        segments: int32[b w], the document of a window; -1 in an empty place.
        follows: bool[b w], True if the document has a window before this one.
    """

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array
    follows: jax.Array


def find_windows(positions_bt, segments_bt, size: int) -> Windows:
    """Find the windows of `size` tokens that end inside their documents.

    Args:
        positions_bt: int32, from 0 in each document.
        segments_bt: int32, 0 on padding.
        size: The tokens of a window.
    """
    t = positions_bt.shape[1]
    # A document that a row begins with later than at 0 has no window without its first token
    is_whole_bt = segments_bt == _earlier(segments_bt, size - 1)
    is_last_bt = ((positions_bt + 1) % size == 0) & (segments_bt > 0) & is_whole_bt
    # The last tokens of all windows in order, then t in empty places. No row has more than t / size
    last_bw = jnp.sort(jnp.where(is_last_bt, jnp.arange(t), t), axis=1)[:, : t // size]
    is_empty_bw = last_bw == t
    tokens_bwo = jnp.minimum(last_bw, t - 1)[..., None] - jnp.arange(size)[::-1]
    first_bw = tokens_bwo[..., 0]
    segments_bw = jnp.where(is_empty_bw, -1, _at(segments_bt, first_bw))
    follows_bw = _at(_earlier(segments_bt, size), first_bw) == segments_bw
    return Windows(tokens_bwo, _at(positions_bt, first_bw), segments_bw, follows_bw & ~is_empty_bw)


def document_windows(numbers_bw, size: int) -> Windows:
    """Return the windows with these numbers, int32[b w], of a document that begins its row."""
    tokens_bwo = numbers_bw[..., None] * size + jnp.arange(size)
    first_bw = tokens_bwo[..., 0]
    return Windows(tokens_bwo, first_bw, jnp.ones_like(first_bw), first_bw > 0)


def _earlier(segments_bt, steps):
    """Return the segment of the token `steps` earlier, -1 before the row: int32[b t]."""
    padded = jnp.pad(segments_bt, ((0, 0), (steps, 0)), constant_values=-1)
    return padded[:, : segments_bt.shape[1]]


def _at(array, index):
    """Gather array [b t ...] at index int32[b ...]: one row after another."""
    return jax.vmap(lambda row, at: row[at])(array, index)


def seen_entries(segments_bt, at_t, windows: Windows):
    """Return the entries that each query sees, bool[b t w].

    A query sees the entries of its document from the last token of their windows on: entry i of a
    document is seen from its position i * size + size - 1.

    Args:
        segments_bt: Segments of the queries.
        at_t: int32[t] or [b t], the queries' indices in their row.
        windows: The windows of the whole rows.
    """
    is_finished_btw = windows.tokens[:, None, :, -1] <= at_t[..., None]
    return is_finished_btw & (segments_bt[:, :, None] == windows.segments[:, None])


def pool(values_btzx, logits_btzx, bias_ozx, windows: Windows):
    """Pool each window to one entry by a softmax over its tokens, channel by channel: [b w x].

    With one series, entry i is over window i. With two, the windows overlap: entry i is one softmax
    over series 0 of window i - 1 and series 1 of window i. The first entry of a document has no
    window before it. The softmax is float32. Rows may be rings: indices of tokens count modulo t.

    Args:
        values_btzx: What is summed.
        logits_btzx: The weights before the softmax and before bias_ozx.
        bias_ozx: float32, by the place in the window.
        windows: The windows of these rows.
    """
    size = windows.tokens.shape[-1]
    t, series = values_btzx.shape[1:3]

    def slots(a_btzx, bias_ozx, empty):
        slots_bwox = _at(a_btzx[:, :, -1], windows.tokens % t) + bias_ozx[:, -1]
        if series == 1:
            return slots_bwox
        before_bwox = _at(a_btzx[:, :, 0], (windows.tokens - size) % t) + bias_ozx[:, 0]
        before_bwox = jnp.where(windows.follows[..., None, None], before_bwox, empty)
        return jnp.concatenate([before_bwox, slots_bwox], axis=2)

    logits_bwox = slots(logits_btzx.astype(jnp.float32), bias_ozx, -jnp.inf)
    values_bwox = slots(values_btzx.astype(jnp.float32), jnp.zeros_like(bias_ozx), 0.0)
    return (jax.nn.softmax(logits_bwox, axis=2) * values_bwox).sum(2).astype(values_btzx.dtype)
