"""The decoding caches of DeepSeek-V4's layers (arXiv:2606.19348, section 2.3).

Only entries grow with a text. The other arrays are rings of the latest tokens: the token at position
p is at index p modulo the ring's length, so that every sequence writes at a place of its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models.cache import write_at
from deepseek_jax.models.v4.config import CSA, LayerKind, V4Config
from deepseek_jax.parallel.decoding import own_slots


class CompressorCache(NamedTuple):
    """What a compressor remembers.

    Attributes:
        entries: [b w x], one for each finished window, in order.
        values: float32[b o zx], of the tokens in the unfinished window, and where windows overlap
            (two series z) in the window before it: a ring, see ops.compress.pool. A prefill returns
            all tokens.
        logits: float32[b o zx], in the same way.
    """

    entries: jax.Array
    values: jax.Array
    logits: jax.Array


class LayerCache(NamedTuple):
    """What one layer remembers.

    Attributes:
        kv: [b s x], the tokens of the sliding window: a ring. A prefill returns all tokens.
        compressor: None in a layer without one.
        indexer: Of the indexer's compressor; None in a layer without an indexer.
    """

    kv: jax.Array
    compressor: CompressorCache | None = None
    indexer: CompressorCache | None = None


def empty_caches(config: V4Config, batch_size: int, length: int, dtype) -> list[LayerCache]:
    """Create the caches of all layers, filled with zeros.

    Args:
        config: The model.
        batch_size: The number of sequences.
        length: Tokens of the longest text that has to fit.
        dtype: The dtype of keys and entries. What will be pooled is float32.
    """

    def zeros(*shape, dtype=dtype):
        return own_slots(jnp.zeros((batch_size, *shape), dtype))

    def compressor(kind, width):
        shape = (_series(kind) * kind.rate, _series(kind) * width)
        values, logits = (zeros(*shape, dtype=jnp.float32) for _ in range(2))
        return CompressorCache(zeros(length // kind.rate, width), values, logits)

    return [
        LayerCache(
            zeros(config.sliding_window, config.head_dim),
            compressor(kind, config.head_dim) if kind.rate else None,
            compressor(kind, config.index_head_dim) if kind.attention == CSA else None,
        )
        for kind in config.layers
    ]


def _series(kind):
    """Return the series of a kind's compressors. Its rings have as many windows."""
    return 2 if kind.attention == CSA else 1


def as_rings(config: V4Config, kind: LayerKind, rows: LayerCache, lengths) -> LayerCache:
    """Return a layer's cache after a prefill: the rings of what it returned for whole rows.

    Args:
        config: The model.
        kind: What the layer is.
        rows: Of a prefill.
        lengths: int32[b], the tokens of each row. Places for tokens that a row does not have get
            any other.
    """

    def ring(rows_btx, size):
        last_b1 = lengths[:, None] - 1
        at_bo = last_b1 - (last_b1 - jnp.arange(size)) % size
        return jnp.take_along_axis(rows_btx, jnp.maximum(at_bo, 0)[..., None], axis=1)

    def compressor(rows):
        if rows is None:
            return None
        size = _series(kind) * kind.rate
        return rows._replace(values=ring(rows.values, size), logits=ring(rows.logits, size))

    kv = ring(rows.kv, config.sliding_window)
    return LayerCache(kv, compressor(rows.compressor), compressor(rows.indexer))


def put(ring_box, positions_b1, row_b1x):
    """Write the row [b 1 x] of the latest token into a ring [b o x]."""
    return own_slots(write_at(ring_box, positions_b1 % ring_box.shape[1], own_slots(row_b1x)))


def put_entry(entries_bwx, positions_b1, entry_b1x, rate: int):
    """Write an entry [b 1 x] into [b w x] where a sequence's latest token ends a window."""
    is_last_b1 = (positions_b1 + 1) % rate == 0
    # An index past the end is dropped
    index_b1 = jnp.where(is_last_b1, positions_b1 // rate, entries_bwx.shape[1])
    return own_slots(write_at(entries_bwx, index_b1, own_slots(entry_b1x)))
