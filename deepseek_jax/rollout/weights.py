"""Parameters in the form for decoding, once a rollout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from deepseek_jax.models import abstract_init
from deepseek_jax.models.adapters import whole
from deepseek_jax.models.layers import HALVES_APART, LINEAR
from deepseek_jax.models.low_rank import dense, is_weight
from deepseek_jax.ops.decoding import prepare
from deepseek_jax.parallel import constrain, logical_names
from deepseek_jax.parallel.decoding import join_halves, to_rollout

# Parts of the names of weights whose products are float32, and of those that every device has whole
FLOAT32 = ("router", "head_weights")
WHOLE = ("router", "v_up")


def cast(config, params):
    """Cast params to the compute dtype, except for the weights of routers and of an indexer's heads, whose
    products are float32.
    """
    return jax.tree.map_with_path(functools.partial(_cast, config), params)


def _cast(config, path, leaf):
    return leaf if _is_one_of(FLOAT32, path) else leaf.astype(config.dtype)


def _is_one_of(names, path):
    return any(name in str(part) for part in path for name in names)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["stacks"], meta_fields=["counts"])
@dataclasses.dataclass(frozen=True)
class InPlace:
    """The layers of a model whose base is in int8: stacks as they were trained, with the layers of each."""

    stacks: list
    counts: tuple[int, ...]

    def one_by_one(self, x):
        """The layers' params. x changes with every token. If the slices did not depend on it, the compiler
        would take them once for all tokens, and hold a second copy of the model.
        """
        stacks, _ = jax.lax.optimization_barrier((self.stacks, x))
        for stack, count in zip(stacks, self.counts, strict=True):
            for i in range(count):
                yield jax.tree.map(lambda leaf, i=i: leaf[i], stack)


def layers_of(weights, x):
    """Each layer's params, in order. x: the hidden states that enter the first."""
    layers = weights["layers"]
    return layers.one_by_one(x) if isinstance(layers, InPlace) else layers


def decoding_weights(config, params):
    """Unstack the layers and cast to the compute dtype, once a rollout: decoding runs fastest unrolled.

    What `cast` leaves stays float32, as routing and index scores do. The weights of Linear layers are
    prepared for products of few rows.
    """
    names, params = axis_names(config), whole(params)
    layers = []
    for stack, count in (
        ("dense_layers", config.num_dense_layers),
        ("moe_layers", config.num_moe_layers),
    ):
        # Without the axis of layers
        own = jax.tree.map(lambda axes: axes[1:], names.get(stack), is_leaf=_is_axes)
        for i in range(count):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], params[stack])
            layers.append(layer_weights(config, layer, own))
    # Under config.fp8, models.layers multiplies by another op, which takes weights as they are
    if not config.fp8:
        layers = jax.tree.map_with_path(_prepared, layers)
    vocabulary = _vocabulary(config, params)
    placed = {n: constrain(vocabulary[n], names[n]) for n in ("embedding", "head") if n in params}
    return vocabulary | placed | {"layers": layers}


def layer_weights(config, layer, names):
    """A layer's parameters in the compute dtype, where decoding needs them and as its loop reads them: the
    halves of gate and up are one axis, and both projections of models.mla down one weight. names: their axes.
    """
    move = functools.partial(_moved, config)
    layer = jax.tree.map_with_path(move, layer, names, is_leaf=is_weight)
    if config.is_mla and not config.fp8:
        layer["attention"] = _with_one_down(layer["attention"])
    return layer


def in_place(config, params):
    """decoding_weights of a base in int8, which stays as it is: one more copy would not fit. See InPlace."""
    params = whole(params)
    counts = {"dense_layers": config.num_dense_layers, "moe_layers": config.num_moe_layers}
    stacks = {name: count for name, count in counts.items() if count}
    layers = InPlace([params[name] for name in stacks], tuple(stacks.values()))
    return _vocabulary(config, params) | {"layers": layers}


def _vocabulary(config, params):
    """What comes before the layers and after them, in the compute dtype."""
    kept = {name: params[name] for name in ("embedding", "head") if name in params}
    return cast(config, kept | {"final_norm": params["final_norm"]["scale"]})


def _moved(config, path, leaf, axes):
    """A layer's parameter in the compute dtype, where decoding needs it.

    An adapter is merged here: the result is what the model computes with, rounded the same way.
    """
    if _is_one_of(WHOLE, path) or (config.fp8 and "latent" in axes):
        # Each device chooses experts and expands values for its own tokens; FP8's product would gather its
        # weight at every token
        axes = (None,) * len(axes)
    # Cast and unstacked first: weights that change their place travel a layer at a time, in few bytes
    leaf = to_rollout(_cast(config, path, dense(leaf)), axes)
    # models.layers multiplies FP8's halves apart
    joins = axes[-len(HALVES_APART) :] == HALVES_APART and not config.fp8
    return join_halves(leaf, axes) if joins else leaf


def _with_one_down(attention):
    """The weights of models.mla, where both projections down become one, whose result is gathered once."""
    parts = [attention[name] for name in ("q_down", "kv_down") if name in attention]
    others = {name: w for name, w in attention.items() if name not in ("q_down", "kv_down")}
    return others | {"down": constrain(jnp.concatenate(parts, axis=1), ("embed", "latent"))}


def axis_names(config):
    """The logical axes of every parameter: a tree of tuples like the params."""
    return logical_names(abstract_init(config))


def _is_axes(x):
    return isinstance(x, tuple)


def _prepared(path, leaf):
    """A weight that models.layers.linear multiplies by in ops.decoding.prepare's form, any other as it is."""
    name = path[-1].key
    # Experts' weights have the same names and one more axis
    is_of_experts = leaf.ndim == {"gate_up": 3, "down": 3}.get(name)
    return prepare(leaf, LINEAR[name]) if name in LINEAR and not is_of_experts else leaf
