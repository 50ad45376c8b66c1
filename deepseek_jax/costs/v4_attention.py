"""What a token attends to in DeepSeek-V4's layers, and what scoring it costs (arXiv:2606.19348).

Tests: tests/costs/test_flops.py.
"""

from deepseek_jax.models.v4.config import CSA, LayerKind, V4Config


def attended_keys(config: V4Config, keys: float, *, whole_row: bool) -> float:
    """Return how many keys and entries a query attends to, averaged over the layers.

    Args:
        config: The model.
        keys: The number of tokens that a query could see.
        whole_row: True for the average over the queries of a row, where `keys` is half of the row;
            False for one query.
    """
    by_layer = [_attended(config, kind, keys, whole_row) for kind in config.layers]
    return sum(by_layer) / len(by_layer)


def indexer_flops(config: V4Config, keys: float) -> float:
    """Return the operations of one token in the forward pass of all indexers.

    Args:
        config: The model.
        keys: As in attended_keys.
    """
    d, (q, j, y, _) = config.hidden_size, config.indexer
    # Queries, weights of heads, and a compressor with two series of values and of gates
    weights = q * j * y + d * j + 2 * 2 * d * y
    rates = [kind.rate for kind in config.layers if kind.attention == CSA]
    return sum(2 * (weights + j * y * keys / rate) for rate in rates)


def _attended(config, kind: LayerKind, keys, whole_row):
    window = _at_most(config.sliding_window, keys, whole_row)
    if not kind.rate:
        return window
    entries = keys / kind.rate
    if kind.attention == CSA and config.indexer_loss != "dense":
        entries = _at_most(config.index_topk, entries, whole_row)
    return window + entries


def _at_most(limit, keys, whole_row):
    """Return how many of `keys` keys a query sees that sees at most `limit` of them."""
    if not whole_row:
        return min(limit, keys)
    # The mean of min(limit, i) over i up to the whole row, 2 * keys
    return limit * (1 - limit / (4 * keys)) if limit < 2 * keys else keys
