"""Floating-point operations that a model needs of an update; launch/planning reads those that XLA counts."""

import functools

import flax.linen as nn
import jax

from deepseek_jax.models import ModelConfig, abstract_init
from deepseek_jax.parallel import logical_names


def useful_flops(
    config: ModelConfig,
    sequence_length: int,
    *,
    trains_mtp: bool,
    frozen: bool = False,
    logits: float = 1.0,
) -> float:
    """Operations that one token of a full row needs, forward and backward: float.

    6 for each weight that the token meets in a product (one product forward and two backward, of two
    operations each). In attention, 6 for each number of a key that a query scores and of a value that it
    weights; a query sees half of its row on average. Nothing is counted twice, whatever the program
    recomputes. trains_mtp: whether a loss trains the multi-token prediction modules, whose layer and head
    then count as well. frozen: see training_flops. logits: see forward_flops.
    """
    depths = config.num_nextn_predict_layers if trains_mtp else 0
    attended = attended_keys(config, sequence_length)
    return training_flops(config, sequence_length / 2, depths, frozen, attended, logits)


def warm_up_flops(config: ModelConfig, sequence_length: int, *, trains_mtp: bool):
    """useful_flops where the indexers learn alone: forward, and the backward pass of the indexers."""
    depths, keys = config.num_nextn_predict_layers if trains_mtp else 0, sequence_length / 2
    forward = forward_flops(config, keys, depths, attended_keys(config, sequence_length))
    return forward + 2 * indexer_flops(config, keys, depths)


def training_flops(
    config: ModelConfig,
    keys: float,
    depths: int = 0,
    frozen: bool = False,
    attended: float | None = None,
    logits: float = 1.0,
):
    """forward_flops, and those of the backward pass, which an indexer needs only where it learns. frozen: the
    weights stay as they are beside an adapter, which needs no gradient of theirs; the adapter's own few
    products do not count. (Our program computes that gradient all the same, a layer at a time, because it
    merges the two.)
    """
    forward = forward_flops(config, keys, depths, attended, logits)
    weights = _multiplied(config, depths, logits)
    if config.has_indexer and config.indexer_loss == "none":
        forward -= 2 / 3 * indexer_flops(config, keys, depths)
        weights -= indexer_flops(config, 0, depths) / 2
    return 3 * forward - frozen * 2 * weights


def attended_keys(config: ModelConfig, length: int):
    """How many keys a token of a full row attends to on average: float. Half of the row, or less by an
    indexer's selection.
    """
    if not config.selects(length):
        return length / 2
    return config.index_topk * (1 - config.index_topk / (2 * length))


def indexer_flops(config: ModelConfig, keys: float, depths: int = 0):
    """The part of forward_flops that is the indexers': float."""
    if not config.has_indexer:
        return 0.0
    d, j, y = config.hidden_size, config.index_n_heads, config.index_head_dim
    weights = config.q_lora_rank * j * y + d * (y + j)
    return 2 * (config.num_hidden_layers + depths) * (weights + j * y * keys)


def forward_flops(
    config: ModelConfig,
    keys: float,
    depths: int = 0,
    attended: float | None = None,
    logits: float = 1.0,
):
    """Operations that one token needs whose queries score `keys` keys, forward alone: float. See
    useful_flops. depths: as in active_weights. attended: the keys that attention sees, where an indexer
    scores `keys` and selects among them; by default as many of them as it can select. logits: the share of
    the tokens whose logits are needed: all of a row that learns, one of a prompt, none of a reward model.
    """
    if attended is None:
        attended = min(keys, config.index_topk) if config.selects(keys) else keys
    scored = indexer_flops(config, keys, depths) - indexer_flops(config, 0, depths)
    of_weights = 2 * _multiplied(config, depths, logits)
    return of_weights + attention_flops(config, attended, depths) + scored


def attention_flops(config: ModelConfig, keys: float, depths: int = 0):
    """The part of forward_flops that scores `keys` keys and weighs their values: float."""
    if config.is_mla:
        width = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    else:
        width = 2 * config.head_dim
    return 2 * (config.num_hidden_layers + depths) * config.num_attention_heads * width * keys


def _multiplied(config, depths, logits):
    """active_weights, of a head only this share: float."""
    heads = (1 + depths) * config.vocab_size * config.hidden_size
    return active_weights(config, depths) - (1 - logits) * heads


@functools.cache
def active_weights(config: ModelConfig, depths: int = 0):
    """How many weights a token meets in matrix products: int.

    Only the routed experts that it chooses count. The head counts once for each prediction. Only the first
    `depths` multi-token prediction modules count.
    """
    boxed = abstract_init(config)
    # The embedding is looked up, not multiplied. The head is counted below: a tied one is no parameter
    used = {name: part for name, part in boxed.items() if name not in ("embedding", "head")}
    for depth in range(depths, config.num_nextn_predict_layers):
        del used[f"mtp_{depth}"]
    names = jax.tree.leaves(logical_names(used), is_leaf=lambda x: isinstance(x, tuple))
    total = (1 + depths) * config.vocab_size * config.hidden_size
    for (path, leaf), axes in zip(jax.tree.leaves_with_path(nn.unbox(used)), names, strict=True):
        name, weights = path[-1].key, leaf.size
        # Norm scales and biases are in no matrix product
        if name == "scale" or name.endswith("bias"):
            continue
        # The router's last axis is experts too, but each token meets all of it
        if "experts" in axes and name != "router":
            weights = weights // config.n_routed_experts * config.num_experts_per_tok
        total += weights
    return total
