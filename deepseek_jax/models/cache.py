"""The decoding caches, one for each layer, and the place where the next token is written."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.models.config import ModelConfig
from deepseek_jax.parallel.decoding import own_slots


class CacheWrite(NamedTuple):
    """The slot of the caches that one decoding step writes.

    index: int32[], the slot that every sequence writes. Keys are rotated by their positions already, so the
    order of slots has no meaning. mask: bool[b s], the slots that each sequence may see, new one included.
    """

    index: jax.Array
    mask: jax.Array

    def __call__(self, cache, entry):
        """Write entry [b 1 x] or [z 1 x] into cache [b s x] or [z s x] at index."""
        entry = entry.astype(cache.dtype)
        return jax.lax.dynamic_update_slice_in_dim(cache, entry, self.index, axis=1)


class PositionWrite(NamedTuple):
    """Like CacheWrite, but each token of each sequence has its own slot.

    index: int32[b t]; entries with an index past the cache's end are dropped. mask: bool[b t s], the slots
    that each of the t tokens may see.
    """

    index: jax.Array
    mask: jax.Array

    def __call__(self, cache, entry):
        """Write entry [b t ...] into cache [b s ...] at index."""
        at = jnp.arange(len(self.index))[:, None], self.index
        return cache.at[at].set(entry.astype(cache.dtype), mode="drop")


def empty_cache(config: ModelConfig, batch_size: int, length: int, dtype):
    """Zeros for one layer: c_kv [b s c] and k_rope [b s r] under MLA, k and v [z s x] under GQA.

    z: all key heads of the first sequence, then all of the second, and so on, so that the axis splits over
    devices by sequences.
    """
    if config.is_mla:
        shapes = {
            "c_kv": (batch_size, length, config.kv_lora_rank),
            "k_rope": (batch_size, length, config.qk_rope_head_dim),
        }
    else:
        # One axis for both: XLA's CPU compiler copied a cache that had an axis of one sequence at every step
        shape = (batch_size * config.num_key_value_heads, length, config.head_dim)
        shapes = {"k": shape, "v": shape}
    return {name: own_slots(jnp.zeros(shape, dtype)) for name, shape in shapes.items()}
