"""What decoding remembers: a cache a layer, and where the next token is written in it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class CacheWrite(NamedTuple):
    """One decoding step's place in the caches.

    index: int32[], the slot that every sequence writes (positions live in the keys, so the order of slots
    carries no meaning). mask: bool[b s], the slots that each sequence may see, the new one included.
    """

    index: jax.Array
    mask: jax.Array

    def __call__(self, cache, entry):
        """Write entry [b 1 x] or [z 1 x] into cache [b s x] or [z s x] at index."""
        entry = entry.astype(cache.dtype)
        return jax.lax.dynamic_update_slice_in_dim(cache, entry, self.index, axis=1)


class PositionWrite(NamedTuple):
    """As CacheWrite, but every sequence writes where its own positions say, one token a position.

    index: int32[b t]; what lies past the cache's end is dropped. mask: bool[b t s], the slots that each of
    the t tokens may see.
    """

    index: jax.Array
    mask: jax.Array

    def __call__(self, cache, entry):
        """Write entry [b t ...] into cache [b s ...] at index."""
        at = jnp.arange(len(self.index))[:, None], self.index
        return cache.at[at].set(entry.astype(cache.dtype), mode="drop")


def empty_cache(config, batch_size, length, dtype):
    """Zeros for one layer: MLA keeps kv_lora_rank + qk_rope_head_dim numbers a token, GQA its k and v heads.

    c_kv [b s c] and k_rope [b s r], or k and v [z s x], where z are the sequences of one key head after those
    of another, so that devices may share out the heads.
    """
    if config.is_mla:
        shapes = {
            "c_kv": (batch_size, length, config.kv_lora_rank),
            "k_rope": (batch_size, length, config.qk_rope_head_dim),
        }
    else:
        shape = (config.num_key_value_heads * batch_size, length, config.head_dim)
        shapes = {"k": shape, "v": shape}
    return {name: jnp.zeros(shape, dtype) for name, shape in shapes.items()}
