"""Frozen weights in int8, by the library qwix: half the memory of bfloat16, to train an adapter."""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.models.layers import INPUTS, input_axes


def quantized(params):
    """Quantize every weight of attention, MLPs and experts to a qwix.QArray, which `weight` reads.

    Its qvalue is int8. Its scale is float32, the largest magnitude over 127.5, one for each output,
    layer and expert. Embedding, head, norms, biases, routers and multi-token prediction stay as
    they are.
    """
    return _over_weights(params, _quantize)


def abstract_quantized(params):
    """Return the result of `quantized` for ShapeDtypeStructs with shardings."""
    return _over_weights(params, _abstract)


def is_quantized(params):
    """Return True if weights of params are in int8, also if only an adapter's base is."""
    return any(map(_holds_int8, jax.tree.leaves(params, is_leaf=_holds_int8)))


def _holds_int8(node):
    return hasattr(node, "qvalue")


def unquantized_leaves(params):
    """Return the leaves that int8 does not change: embedding, head, norms, biases, routers, MTP."""
    leaves = jax.tree.leaves_with_path(params, is_leaf=_holds_int8)
    return [leaf for path, leaf in leaves if _int8_axes(path) is None]


def _over_weights(params, convert):
    def convert_leaf(path, leaf):
        axes = _int8_axes(path)
        return leaf if axes is None else convert(leaf, axes)

    return jax.tree.map_with_path(convert_leaf, params)


def _int8_axes(path):
    # Only speculative decoding reads multi-token prediction modules, and it takes no int8
    return None if path[0].key.startswith("mtp_") else input_axes(path, INPUTS)


@functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
def _quantize(leaf, inputs):
    import qwix

    scale_axes = [axis for axis in range(leaf.ndim) if axis not in inputs]
    return qwix.quantize(leaf.astype(jnp.float32), jnp.int8, channelwise_axes=scale_axes)


def _abstract(leaf, inputs):
    qarray = jax.eval_shape(lambda x: _quantize(x, inputs), leaf)
    spec = [*leaf.sharding.spec, *[None] * leaf.ndim][: leaf.ndim]
    for axis in inputs:
        spec[axis] = None
    scale_sharding = jax.sharding.NamedSharding(
        leaf.sharding.mesh, jax.sharding.PartitionSpec(*spec)
    )
    return qarray.replace(
        qvalue=qarray.qvalue.update(sharding=leaf.sharding),
        scale=qarray.scale.update(sharding=scale_sharding),
    )
