"""The decoding caches, one for each layer, and how new tokens are written into them."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.parallel.decoding import own_slots


@dataclasses.dataclass(frozen=True)
class CacheWrite:
    """A decoding step's write into the caches: every sequence writes the same slot.

    Keys are rotated by their positions before they are written, so the order of slots has no
    meaning to attention. It has one for an indexer: a tie of its scores goes to the lowest
    position.

    Attributes:
        index: int32[], the slot that every sequence writes.
        mask: bool[b s], the slots that each sequence may see, including the new one.
        ring: The first of the slots that are written in turn, round and round; the slot after index
            is the oldest of them. None if slots are in the order of positions.
    """

    index: jax.Array
    mask: jax.Array
    ring: int | None = None

    def __call__(self, cache, entry):
        """Write entry [b 1 x] or [z 1 x] into cache [b s x] or [z s x] at index."""
        entry = entry.astype(cache.dtype)
        return jax.lax.dynamic_update_slice_in_dim(cache, entry, self.index, axis=1)


@dataclasses.dataclass(frozen=True)
class PositionWrite:
    """A write like CacheWrite, but each token of each sequence has a slot by its position.

    Slots are in the order of positions.

    Attributes:
        index: int32[b t]; entries with an index past the cache's end are dropped.
        mask: bool[b t s], the slots that each of the t tokens may see; bool[b s] for a single
            token.
    """

    index: jax.Array
    mask: jax.Array
    ring: ClassVar[None] = None

    def __call__(self, cache, entry):
        """Write entry [b t x] or [z t x] into cache [b s x] or [z s x] at index."""
        index_zt = jnp.repeat(self.index, len(cache) // len(self.index), axis=0)
        return write_at(cache, index_zt, entry)


def write_at(cache_bsx, index_bt, entry_btx):
    """Write entries into a cache at int32[b t]; the ones with an index past its end are dropped."""

    def write(cache_sx, index_t, entry_tx):
        return cache_sx.at[index_t].set(entry_tx, mode="drop")

    # vmap over sequences: the compiler then splits the write over devices as it splits the caches
    return jax.vmap(write)(cache_bsx, index_bt, entry_btx.astype(cache_bsx.dtype))


def in_order(a_bs, ring: int | None, newest):
    """Put the entries of a cache's slots, [b s], into the order of their positions.

    Args:
        a_bs: One entry for each slot.
        ring: See CacheWrite.
        newest: int32[], the slot written last.
    """
    if ring is None:
        return a_bs
    in_turn = jnp.roll(a_bs[:, ring:], ring - 1 - newest, axis=1)
    return jnp.concatenate([a_bs[:, :ring], in_turn], axis=1)


def slots_in_order(indices, length: int, ring: int | None, newest):
    """Return the slots that indices into in_order's result stand for.

    Args:
        indices: int32[...].
        length: The number of slots of the cache.
        ring: See CacheWrite.
        newest: int32[], the slot written last.
    """
    if ring is None:
        return indices
    in_turn = ring + (indices + newest + 1 - 2 * ring) % (length - ring)
    return jnp.where(indices < ring, indices, in_turn)


def empty_cache(config: ModelConfig, batch_size: int, length: int, dtype):
    """Create one layer's cache, filled with zeros.

    Under MLA it has latents [b s c+r] (c_kv, then k_rope: a kernel for TPUs reads one array), and
    with an indexer k_index [b s y] too. Under GQA it has k and v, [z s x] each; z is all key heads
    of the first sequence, then all of the second, and so on, so that the axis splits over devices
    by sequences.

    Args:
        config: The model.
        batch_size: The number b of sequences.
        length: The number s of slots.
        dtype: The dtype of the arrays.
    """
    if config.is_mla:
        sizes = config.latent
        shapes = {
            "latents": (batch_size, length, sizes.kv_lora_rank + sizes.qk_rope_head_dim),
        }
        if config.has_indexer:
            shapes["k_index"] = (batch_size, length, config.indexer.index_head_dim)
    else:
        # One axis for both: XLA's CPU compiler copied a cache that had an axis of one sequence at every step
        k, x = config.grouped
        shape = (batch_size * k, length, x)
        shapes = {"k": shape, "v": shape}
    return {name: own_slots(jnp.zeros(shape, dtype)) for name, shape in shapes.items()}
