"""Floating-point operations that a model needs, by its shapes.

launch/planning reads instead the operations that XLA counts.
"""

import functools

import flax.linen as nn
import jax

from deepseek_jax.costs import v4_attention
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.params import abstract_init
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.parallel.shard import logical_names


def useful_flops(
    config: Network,
    sequence_length: int,
    *,
    trains_mtp: bool,
    frozen: bool = False,
    logits: float = 1.0,
) -> float:
    """Return the operations that one token of a full row needs in an update, forward and backward.

    It counts 6 for each weight that the token meets in a product (one product forward and two
    backward, of two operations each). In attention it counts 6 for each number of a key that a
    query scores and of a value that it weights; a query sees half of its row on average. Nothing is
    counted twice, whatever the program recomputes.

    Args:
        config: The model.
        sequence_length: The tokens of a row.
        trains_mtp: Whether a loss trains the multi-token prediction modules. If so, their layer and
            head count too.
        frozen: See training_flops.
        logits: See forward_flops.
    """
    depths = config.num_nextn_predict_layers if trains_mtp else 0
    attended = attended_keys(config, sequence_length)
    return training_flops(config, sequence_length / 2, depths, frozen, attended, logits)


def warm_up_flops(config: Network, sequence_length: int, *, trains_mtp: bool) -> float:
    """Return useful_flops of an update that trains only the indexers.

    It counts the forward pass, and the backward pass of the indexers.
    """
    depths, keys = config.num_nextn_predict_layers if trains_mtp else 0, sequence_length / 2
    forward = forward_flops(config, keys, depths, attended_keys(config, sequence_length))
    return forward + 2 * indexer_flops(config, keys, depths)


def training_flops(
    config: Network,
    keys: float,
    depths: int = 0,
    frozen: bool = False,
    attended: float | None = None,
    logits: float = 1.0,
) -> float:
    """Return the operations of one token in the forward and the backward pass.

    An indexer counts in the backward pass only if it learns. The arguments are explained at
    forward_flops.

    Args:
        frozen: True if an adapter learns and the weights do not change, so that they need no
            gradient. The adapter's own few products do not count. (Our program computes the
            weights' gradient all the same, a layer at a time, because it merges the weights with
            the adapter.)
    """
    forward = forward_flops(config, keys, depths, attended, logits)
    weights = _multiplied(config, depths, logits)
    if config.has_indexer and config.indexer_loss == "none":
        forward -= 2 / 3 * indexer_flops(config, keys, depths)
        weights -= indexer_flops(config, 0, depths) / 2
    return 3 * forward - frozen * 2 * weights


def attended_keys(config: Network, length: int) -> float:
    """Return how many keys a token of a full row attends to on average.

    That is half of the row, or less if an indexer selects keys. In DeepSeek-V4 compressed entries
    count as keys, and layers differ: it is their average.
    """
    if isinstance(config, V4Config):
        return v4_attention.attended_keys(config, length / 2, whole_row=True)
    if not config.selects(length):
        return length / 2
    selected = config.indexer.index_topk
    return selected * (1 - selected / (2 * length))


def indexer_flops(config: Network, keys: float, depths: int = 0) -> float:
    """Return the part of forward_flops that the indexers need."""
    if not config.has_indexer:
        return 0.0
    if isinstance(config, V4Config):
        # Its prediction modules have none
        return v4_attention.indexer_flops(config, keys)
    d, sizes = config.hidden_size, config.indexer
    j, y = sizes.index_n_heads, sizes.index_head_dim
    weights = sizes.q_lora_rank * j * y + d * (y + j)
    return 2 * (config.num_hidden_layers + depths) * (weights + j * y * keys)


def forward_flops(
    config: Network,
    keys: float,
    depths: int = 0,
    attended: float | None = None,
    logits: float = 1.0,
) -> float:
    """Return the operations of one token in the forward pass, see useful_flops.

    Args:
        config: The model.
        keys: The number of keys that the token's queries score.
        depths: The number of multi-token prediction modules that count, see active_weights.
        attended: The number of keys that attention sees, if an indexer scores `keys` keys and
            selects some. Default: as many of them as it can select.
        logits: The share of the tokens that need logits: all of a row that learns, one of a prompt,
            none of a reward model.
    """
    if attended is None:
        attended = _attended_by_one(config, keys)
    scored = indexer_flops(config, keys, depths) - indexer_flops(config, 0, depths)
    of_weights = 2 * _multiplied(config, depths, logits)
    return of_weights + attention_flops(config, attended, depths) + scored


def _attended_by_one(config, keys):
    """Return how many of `keys` keys one query attends to."""
    if isinstance(config, V4Config):
        return v4_attention.attended_keys(config, keys, whole_row=False)
    return min(keys, config.indexer.index_topk) if config.selects(keys) else keys


def attention_flops(config: Network, keys: float, depths: int = 0) -> float:
    """Return the part of forward_flops that scores `keys` keys and weighs their values."""
    if isinstance(config, V4Config):
        # One vector is key and value
        width = 2 * config.head_dim
    elif config.is_mla:
        sizes = config.latent
        width = sizes.qk_nope_head_dim + sizes.qk_rope_head_dim + sizes.v_head_dim
    else:
        width = 2 * config.grouped.head_dim
    return 2 * (config.num_hidden_layers + depths) * config.num_attention_heads * width * keys


def _multiplied(config, depths, logits):
    """Return active_weights as float, with only this share of the heads."""
    heads = (1 + depths) * config.vocab_size * config.hidden_size
    return active_weights(config, depths) - (1 - logits) * heads


@functools.cache
def active_weights(config: Network, depths: int = 0) -> int:
    """Return how many weights a token meets in matrix products.

    Only the routed experts that it chooses count. The head counts once for each prediction.

    Args:
        config: The model.
        depths: Only the first `depths` multi-token prediction modules count.
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
        # Norm scales and biases are in no matrix product, nor is a table of experts
        if name in ("scale", "expert_table") or name.endswith("bias"):
            continue
        # A prediction module of DeepSeek-V4 multiplies every residual stream
        if name == "hidden_input" and isinstance(config, V4Config):
            weights *= config.hc_mult
        # The router's last axis is experts too, but each token meets all of it
        if "experts" in axes and name != "router":
            experts = config.experts
            weights = weights // experts.n_routed_experts * experts.num_experts_per_tok
        total += weights
    return total
