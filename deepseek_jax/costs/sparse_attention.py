"""What attention costs by context length: over all keys, and over keys that an indexer selects."""

import dataclasses
from typing import NamedTuple

from deepseek_jax.costs.deployment import cache_bytes, read_cache_bytes
from deepseek_jax.costs.flops import attended_keys, attention_flops, indexer_flops
from deepseek_jax.models.config import ModelConfig


class Attention(NamedTuple):
    """The cost of attention in all layers, for one context length.

    Attributes:
        flops: Operations of a token in scores, weighted values and indexers, forward, on average
            over a row of that length.
        cache_bytes: Bytes of the bfloat16 cache of that many tokens.
        read_bytes: Bytes of this cache that the next token reads.
    """

    flops: float
    cache_bytes: int
    read_bytes: int


def attention_costs(config: ModelConfig, length: int) -> tuple[Attention, Attention]:
    """Return the Attention of a model without and with its indexer: (dense, sparse).

    Args:
        config: A model with an indexer. Dense is the same model without one.
        length: The context length.
    """
    # During the warm-up, indexer_loss is "dense" and indexers do not select yet
    sparse = dataclasses.replace(config, indexer_loss="none")
    dense = dataclasses.replace(
        sparse,
        model_type="deepseek_v3",
        index_n_heads=None,
        index_head_dim=None,
        index_topk=None,
    )
    return _attention(dense, length), _attention(sparse, length)


def _attention(config: ModelConfig, length: int) -> Attention:
    num_keys = length / 2
    flops = attention_flops(config, attended_keys(config, length)) + indexer_flops(config, num_keys)
    return Attention(flops, length * cache_bytes(config), read_cache_bytes(config, length))


def contexts(config: ModelConfig) -> list[int]:
    """Return context lengths to compare, each twice the one before.

    They go from index_topk, where every key is selected, up to max_position_embeddings.
    """
    lengths = [config.indexer.index_topk]
    while 2 * lengths[-1] <= config.max_position_embeddings:
        lengths.append(2 * lengths[-1])
    return lengths
