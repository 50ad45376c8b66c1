"""What attention costs by the length of the context, over all keys and over those that an indexer selects."""

import dataclasses
from typing import NamedTuple

from deepseek_jax.costs.deployment import cache_bytes, read_cache_bytes
from deepseek_jax.costs.flops import attended_keys, attention_flops, indexer_flops
from deepseek_jax.models import ModelConfig


class Attention(NamedTuple):
    """flops: operations of a token in scores and weighted values, and in its indexers, forward, on average
    over a row of that length. held: bytes of the bfloat16 cache of that many tokens. read: bytes of it that
    the next token reads.
    """

    flops: float
    held: int
    read: int


def attention_costs(config: ModelConfig, length: int):
    """(dense, sparse) Attention of all layers, of a model with an indexer and of the same one without."""
    # A warm-up's indexers select nothing yet
    sparse = dataclasses.replace(config, indexer_loss="none")
    dense = dataclasses.replace(
        sparse,
        model_type="deepseek_v3",
        index_n_heads=None,
        index_head_dim=None,
        index_topk=None,
    )
    return tuple(_attention(one, length) for one in (dense, sparse))


def _attention(config, length):
    keys = length / 2
    flops = attention_flops(config, attended_keys(config, length)) + indexer_flops(config, keys)
    return Attention(flops, length * cache_bytes(config), read_cache_bytes(config, length))


def contexts(config: ModelConfig):
    """Lengths from index_topk, where nothing is left out, to the model's positions, each twice the last."""
    lengths = [config.index_topk]
    while 2 * lengths[-1] <= config.max_position_embeddings:
        lengths.append(2 * lengths[-1])
    return lengths
