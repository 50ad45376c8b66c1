"""Parameters in the form for decoding, once a rollout."""

import functools

import jax

from deepseek_jax.models import init_params
from deepseek_jax.models.adapters import whole
from deepseek_jax.models.layers import LINEAR
from deepseek_jax.models.low_rank import dense_tree
from deepseek_jax.ops.decoding import prepare
from deepseek_jax.parallel import constrain, logical_names
from deepseek_jax.rollout.slots import on_rollout_mesh


def cast(config, params):
    """Cast params to the compute dtype, except for router weights and their bias."""

    def cast_leaf(path, leaf):
        keep = any("router" in str(part) for part in path)
        return leaf if keep else leaf.astype(config.dtype)

    return jax.tree_util.tree_map_with_path(cast_leaf, params)


@functools.partial(jax.jit, static_argnums=0)
@on_rollout_mesh
def decoding_weights(config, params):
    """Unstack the layers and cast to the compute dtype, once a rollout: decoding runs fastest unrolled.

    Router weights and their bias stay float32, as routing does. The weights of Linear layers are prepared for
    products of few rows.
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
            # An adapter is merged here: the result is what the model computes with, rounded the same way
            layer = dense_tree(jax.tree.map(lambda leaf, i=i: leaf[i], params[stack]))
            layer = cast(config, layer)
            # Cast and unstacked first: weights that change their place travel a layer at a time, in few bytes
            layers.append(jax.tree.map(constrain, layer, own))
    # Under config.fp8, models.layers multiplies by another op, which takes weights as they are
    if not config.fp8:
        layers = jax.tree.map_with_path(_prepared, layers)
    vocabulary = {name: params[name] for name in ("embedding", "head") if name in params}
    vocabulary = {
        name: constrain(cast(config, leaf), names[name]) for name, leaf in vocabulary.items()
    }
    return vocabulary | {
        "final_norm": cast(config, params["final_norm"]["scale"]),
        "layers": layers,
    }


def axis_names(config):
    """The logical axes of every parameter: a tree of tuples like the params."""
    return logical_names(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


def _is_axes(x):
    return isinstance(x, tuple)


def _prepared(path, leaf):
    """A weight that models.layers.linear multiplies by in ops.decoding.prepare's form, any other as it is."""
    name = path[-1].key
    # Experts' weights have the same names and one more axis
    is_of_experts = leaf.ndim == {"gate_up": 4, "down": 3}.get(name)
    return prepare(leaf, LINEAR[name]) if name in LINEAR and not is_of_experts else leaf
