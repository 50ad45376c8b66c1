"""Weights in int8, of a small tree."""

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.models.quantized import (
    abstract_quantized,
    is_quantized,
    quantized,
    unquantized_leaves,
)
from deepseek_jax.parallel import make_mesh

SHAPES = {
    "embedding": (6, 4),
    "dense_layers": {"attention": {"out": (2, 3, 5, 4)}, "norm": {"scale": (2, 4)}},
    "moe_layers": {"ffn": {"gate_up": (2, 8, 4, 2, 3), "router": (2, 4, 8)}},
    "mtp_0": {"block": {"ffn": {"down": (8, 3, 4)}}},
}
# The axes that their products contract
INPUTS = {"out": (1, 2), "gate_up": (2,)}


def tree(make):
    return jax.tree.map(make, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def weights():
    rng = np.random.default_rng(0)
    return tree(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.bfloat16))


def of(params):
    return {"out": params["dense_layers"]["attention"], "gate_up": params["moe_layers"]["ffn"]}


def test_each_output_has_a_scale_of_its_own():
    """Oracle: numpy: the largest magnitude of each output is 127.5 steps; every other leaf stays."""
    plain, found = weights(), quantized(weights())
    for name, axes in INPUTS.items():
        weight, own = np.float32(of(plain)[name][name]), of(found)[name][name]
        steps = np.abs(weight).max(axes, keepdims=True) / 127.5
        np.testing.assert_allclose(own.scale, steps, rtol=1e-6)
        assert own.qvalue.dtype == np.int8 and np.abs(own.qvalue - weight / steps).max() < 0.501
    left = unquantized_leaves(found)
    assert [leaf.shape for leaf in left] == [(2, 4), (6, 4), (2, 4, 8), (8, 3, 4)]
    assert all(leaf.dtype == jnp.bfloat16 for leaf in left)
    assert is_quantized(found) and is_quantized({"base": found}) and not is_quantized(plain)


def test_shapes_of_int8_weights_lie_where_the_weights_do():
    """Oracle: the arrays' shapes and dtypes; by hand, that a scale is whole along contracted axes."""
    mesh = make_mesh(data=1, fsdp=2, expert=4)
    specs = {"out": ("expert", "fsdp", None, None), "gate_up": (None, "expert", "fsdp")}

    def shape(path, leaf):
        spec = jax.P(*specs.get(path[-1].key, ()))
        place = jax.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    given = jax.tree.map_with_path(shape, weights())
    found = abstract_quantized(given)
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), found, quantized(weights())
    )
    assert jax.tree.all(same)
    scales = {"out": ("expert", None, None, None), "gate_up": (None, "expert", None, None, None)}
    for name in INPUTS:
        own = of(found)[name][name]
        assert own.qvalue.sharding == of(given)[name][name].sharding
        assert own.scale.sharding.spec == jax.P(*scales[name])
    assert found["mtp_0"] == given["mtp_0"]
