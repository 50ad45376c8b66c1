"""Convert parameters to the form for decoding, once per rollout.

Tests: tests/rollout/test_steps.py, tests/rollout/test_engine.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from deepseek_jax.models.adapters import whole
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.layers import HALVES_APART, LINEAR
from deepseek_jax.models.low_rank import dense, is_weight
from deepseek_jax.models.params import abstract_init
from deepseek_jax.ops.decoding import prepare
from deepseek_jax.parallel.decoding import join_halves, to_rollout
from deepseek_jax.parallel.shard import constrain, logical_names
from deepseek_jax.trees import PyTree

# Parts of names: of weights with products in float32, and of weights that every device has whole
FLOAT32 = ("router", "head_weights")
WHOLE = ("router", "v_up")


def cast(config: ModelConfig, params: PyTree) -> PyTree:
    """Cast params to the compute dtype, except weights with products in float32.

    These are the weights of routers, and of an indexer's heads.
    """
    return jax.tree.map_with_path(functools.partial(_cast, config), params)


def _cast(config, path, leaf):
    return leaf if _is_one_of(FLOAT32, path) else leaf.astype(config.dtype)


def _is_one_of(names, path):
    return any(name in str(part) for part in path for name in names)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["stacks"], meta_fields=["counts"])
@dataclasses.dataclass(frozen=True)
class InPlace:
    """The layers of a model with a base in int8, in stacks as they were trained.

    Attributes:
        stacks: The params of each stack, with a leading axis of layers.
        counts: The number of layers in each stack.
    """

    stacks: list
    counts: tuple[int, ...]

    def one_by_one(self, x):
        """Yield each layer's params.

        Args:
            x: An array that changes with every token. If the slices did not depend on it, the
                compiler would take them once for all tokens, and store a second copy of the model.
        """
        stacks, _ = jax.lax.optimization_barrier((self.stacks, x))
        for stack, count in zip(stacks, self.counts, strict=True):
            for i in range(count):
                yield jax.tree.map(lambda leaf, i=i: leaf[i], stack)


def layers_of(weights, x):
    """Return each layer's params, in order.

    Args:
        weights: From decoding_weights or in_place.
        x: The hidden states that enter the first layer.
    """
    layers = weights["layers"]
    return layers.one_by_one(x) if isinstance(layers, InPlace) else layers


def decoding_weights(config, params):
    """Return params with unstacked layers in the compute dtype: decoding runs fastest unrolled.

    Weights that `cast` leaves out stay float32, as routing and index scores are. The weights of
    Linear layers are prepared for products of few rows.
    """
    names, params = axis_names(config), whole(params)
    layers = []
    for stack, count in (
        ("dense_layers", config.num_dense_layers),
        ("moe_layers", config.num_moe_layers),
    ):
        # Axes without the leading axis of layers
        layer_axes = jax.tree.map(lambda axes: axes[1:], names.get(stack), is_leaf=_is_axes)
        for i in range(count):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], params[stack])
            layers.append(layer_weights(config, layer, layer_axes))
    # Under config.fp8, models.layers uses another op for products, which takes weights as they are
    if not config.fp8:
        layers = jax.tree.map_with_path(_prepared, layers)
    vocabulary = _vocabulary(config, params)
    placed_vocabulary = {
        n: constrain(vocabulary[n], names[n]) for n in ("embedding", "head") if n in params
    }
    return vocabulary | placed_vocabulary | {"layers": layers}


def layer_weights(config, layer, names):
    """Cast one layer's parameters, place them, and join weights as decoding reads them.

    The halves of gate and up become one axis, and the two projections down of models.mla become one
    weight, except in FP8.

    Args:
        layer: The layer's params.
        names: Their logical axes.
    """
    move = functools.partial(_moved, config)
    layer = jax.tree.map_with_path(move, layer, names, is_leaf=is_weight)
    if config.is_mla and not config.fp8:
        layer["attention"] = _with_one_down(layer["attention"])
    return layer


def in_place(config, params):
    """Return weights for decoding with a base in int8, which stays as it is, see InPlace.

    One more copy of it would not fit.
    """
    params = whole(params)
    counts = {"dense_layers": config.num_dense_layers, "moe_layers": config.num_moe_layers}
    stacks = {name: count for name, count in counts.items() if count}
    layers = InPlace([params[name] for name in stacks], tuple(stacks.values()))
    return _vocabulary(config, params) | {"layers": layers}


def _vocabulary(config, params):
    """Return the parameters before and after the layers, in the compute dtype."""
    vocabulary = {name: params[name] for name in ("embedding", "head") if name in params}
    return cast(config, vocabulary | {"final_norm": params["final_norm"]["scale"]})


def _moved(config, path, leaf, axes):
    """Cast a layer's parameter to the compute dtype, and move it to where decoding needs it.

    An adapter is merged here. The result is the weight that the model computes with, rounded the
    same way.
    """
    if _is_one_of(WHOLE, path) or (config.fp8 and "latent" in axes):
        # Each device chooses experts and expands values for its own tokens, and the product in FP8
        # would gather its weight at every token
        axes = (None,) * len(axes)
    # Move after the cast and one layer at a time, so that few bytes travel at once
    leaf = to_rollout(_cast(config, path, dense(leaf)), axes)
    # In FP8, models.layers multiplies by each half separately
    joins = axes[-len(HALVES_APART) :] == HALVES_APART and not config.fp8
    return join_halves(leaf, axes) if joins else leaf


def _with_one_down(attention):
    """Join both projections down of models.mla into one weight, so that one result is gathered."""
    projections = [attention[name] for name in ("q_down", "kv_down") if name in attention]
    other_weights = {name: w for name, w in attention.items() if name not in ("q_down", "kv_down")}
    return other_weights | {
        "down": constrain(jnp.concatenate(projections, axis=1), ("embed", "latent"))
    }


def axis_names(config):
    """Return the logical axes of every parameter: a tree of tuples like the params."""
    return logical_names(abstract_init(config))


def _is_axes(x):
    return isinstance(x, tuple)


def _prepared(path, leaf):
    """Prepare a weight of models.layers.linear by ops.decoding.prepare; return others unchanged."""
    name = path[-1].key
    # Experts' weights have the same names and one more axis
    is_of_experts = leaf.ndim == {"gate_up": 3, "down": 3}.get(name)
    return prepare(leaf, LINEAR[name]) if name in LINEAR and not is_of_experts else leaf
