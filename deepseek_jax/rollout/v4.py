"""Parts of a rollout that DeepSeek-V4 has in other forms, for its own layers (arXiv:2606.19348)."""

import jax
import jax.numpy as jnp

from deepseek_jax.models.v4 import decoder
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.parallel.decoding import to_rollout
from deepseek_jax.parallel.shard import logical_names
from deepseek_jax.trees import PyTree


def check(*, converses: bool, keeps_routing: bool):
    """Raise ValueError, naming the option, for what a rollout of DeepSeek-V4 cannot do."""
    if converses:
        raise ValueError(
            "tools and environment: in a conversation slots read many tokens at once, and the caches "
            "of DeepSeek-V4 take one at a time; leave them out"
        )
    if keeps_routing:
        raise ValueError(
            "keep_routing=True: the layers of DeepSeek-V4 take no recorded experts; set it to False"
        )


def decoding_weights(config: V4Config, params: PyTree) -> PyTree:
    """Move params to where decoding needs them, without multi-token prediction."""
    boxed = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))

    def moved(path, leaf, names):
        # Each device chooses the experts of its own tokens
        is_whole = path[-1].key == "router"
        return to_rollout(leaf, (None,) * leaf.ndim if is_whole else names)

    names = logical_names(boxed)
    kept = {name: part for name, part in params.items() if not name.startswith("mtp_")}
    return jax.tree.map_with_path(moved, kept, {name: names[name] for name in kept})


def run_latest(config: V4Config, weights: PyTree, slots):
    """Run the latest token of every slot: return the hidden states [b d], and the caches."""
    # A slot that never had a token runs one at position 0
    positions_b = jnp.maximum(slots.prompt_length + slots.length - 1, 0)
    return decoder.decode(config, weights, slots.last_token, positions_b, slots.caches)
