"""The parts of layers by hand, and parameters by their names: which a loss trains, which decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models import RopeScaling
from deepseek_jax.models.indexer import KeyNorm
from deepseek_jax.models.layers import (
    INPUTS,
    LINEAR,
    MATRICES,
    RMSNorm,
    decays,
    has_gradient,
    input_axes,
    linear,
    matrix_input_axes,
    position_tables,
    rms_norm,
)
from deepseek_jax.ops.fp8_dot import fp8_dot
from tests.tiny import CONFIGS, SPARSE

TREE = {
    "layers": {
        "ffn": {"router": 0, "router_bias": 0},
        "attention": {"q_bias": 0, "norm": {"scale": 0}},
        "indexer": {"q": 0},
    },
    "mtp_0": {"input": 0},
}


def named(tree):
    """{the names along a leaf's path: the leaf}"""
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def test_a_loss_trains_what_its_parts_name_and_no_bias_of_a_router():
    """Oracle: by hand, also where the params stand below another key, as a student's do."""
    parts = {
        (): set(),
        ("mtp",): {"input"},
        ("indexer",): {"q"},
        ("mtp", "indexer"): {"input", "q"},
    }
    for given, also in parts.items():
        for tree in (TREE, {"student": TREE}):
            found = jax.tree.map_with_path(
                lambda path, _, given=given: has_gradient(path, given), tree
            )
            trained = {path[-1] for path, is_trained in named(found).items() if is_trained}
            assert trained == {"router", "q_bias", "scale"} | also


def test_weights_decay_and_neither_scales_nor_biases():
    """Oracle: by hand."""
    found = named(decays(jax.tree.map(np.zeros_like, TREE)))
    assert {path[-1] for path, is_weight in found.items() if is_weight} == {"router", "q", "input"}


@pytest.mark.parametrize(
    "path, axes",
    [
        ("dense_layers/attention/q", range(1, 2)),
        ("dense_layers/ffn/down", range(1, 2)),
        ("moe_layers/attention/out", range(1, 3)),
        ("moe_layers/attention/k_up", range(1, 2)),
        ("moe_layers/ffn/gate_up", range(2, 3)),
        ("moe_layers/ffn/down", range(2, 3)),
        ("moe_layers/ffn/shared/gate_up", range(1, 2)),
        ("mtp_0/block/attention/out", range(2)),
        ("mtp_0/block/ffn/down", range(1, 2)),
        ("mtp_0/block/ffn/shared/down", range(1)),
        ("embedding", None),
        ("dense_layers/attention_norm/scale", None),
    ],
)
def test_the_axes_that_a_product_contracts(path, axes):
    """Oracle: by hand: layers come first, then experts; attention's output has two inputs, heads and size."""
    keys = tuple(jax.tree_util.DictKey(name) for name in path.split("/"))
    assert input_axes(keys, INPUTS) == matrix_input_axes(keys) == axes


def test_routers_and_inputs_of_modules_are_matrices_too():
    """Oracle: by hand; every product but that of attention's output contracts one axis."""
    names = "q k v q_down q_up kv_down out gate_up down".split()
    assert dict.fromkeys(names, 1) | {"out": 2} == LINEAR
    assert LINEAR | {"k_up": 1, "v_up": 1} == INPUTS
    more = {"router": 1, "input": 1, "head_weights": 1}
    # DeepSeek-V4's: a group of heads comes first, and streams are inputs too
    more |= {"kv": 1, "gate": 1, "out_down": 2, "out_up": 2, "mix": 2}
    assert INPUTS | more | {"embedding_input": 1, "hidden_input": 1} == MATRICES
    for path, axes in (
        ("moe_layers/ffn/router", range(1, 2)),
        ("mtp_0/input", range(1)),
        ("layers_0/attention/out_down", range(1, 3)),
        ("layers_0/attention/out_up", range(2)),
        ("layers_1/attention/compressor/kv", range(1)),
        ("layers_1/ffn_mixing/mix", range(2)),
    ):
        keys = tuple(jax.tree_util.DictKey(name) for name in path.split("/"))
        assert input_axes(keys, INPUTS) is None and matrix_input_axes(keys) == axes


def test_rms_norm_scales_rows_to_unit_root_mean_square():
    """Oracle: numpy in float64; in bfloat16 the result of the norm is rounded before the scale multiplies it.
    The module takes the config's eps unless it has one.
    """
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(3, 4, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)

    def exact(x, eps):
        return np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True) + eps)

    np.testing.assert_allclose(rms_norm(x, scale, 0.5), exact(x, 0.5) * scale, rtol=1e-5)
    low = jnp.asarray(x, jnp.bfloat16)
    rounded = jnp.asarray(exact(low, 0.5), jnp.bfloat16).astype(jnp.float32) * scale
    found = rms_norm(low, scale, 0.5)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, rounded.astype(jnp.bfloat16))
    config = dataclasses.replace(CONFIGS["gqa"], rms_norm_eps=0.25)
    for eps, wanted in ((None, 0.25), (0.5, 0.5)):
        found = RMSNorm(config, 6, eps=eps).apply({"params": {"scale": scale}}, x)
        np.testing.assert_allclose(found, exact(x, wanted) * scale, rtol=1e-5)


def test_the_norm_of_index_keys_is_layer_norm():
    """Oracle: numpy in float64: zero mean, unit variance, scale and bias; of rows that vary by a thousandth,
    so that the 1e-6 beside the variance halves it.
    """
    y = SPARSE.index_head_dim
    rng = np.random.default_rng(0)
    x, scale, bias = 5 + 1e-3 * rng.normal(size=(2, 3, y)), rng.normal(size=y), rng.normal(size=y)
    wide = np.float32(x).astype(float)
    centred = wide - wide.mean(-1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias
    params = {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}
    found = KeyNorm(SPARSE).apply({"params": params}, jnp.float32(x))
    np.testing.assert_allclose(found, exact, rtol=1e-2, atol=1e-3)


def test_a_linear_layer_in_fp8_has_the_scales_that_it_is_asked_for():
    """Oracle: ops.fp8_dot, with scales of any size and with powers of two."""
    config = dataclasses.replace(CONFIGS["gqa"], fp8=True)
    rng = np.random.default_rng(0)
    x, w = (jnp.float32(rng.normal(size=shape)) for shape in ((2, 3, 5), (5, 4)))
    spec = "btd,dq->btq"
    any_scale, powers = linear(config, spec, x, w), linear(config, spec, x, w, power_of_two=True)
    np.testing.assert_array_equal(any_scale, fp8_dot(spec, x, w, power_of_two=False))
    np.testing.assert_array_equal(powers, fp8_dot(spec, x, w, power_of_two=True))
    assert not np.array_equal(any_scale, powers)


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)


@pytest.mark.parametrize(
    "more, amplitude",
    [
        ({}, 0.1 * np.log(4) + 1),
        (dict(mscale=2.0), 0.1 * np.log(4) + 1),
        (dict(mscale_all_dim=2.0), 0.1 * np.log(4) + 1),
        (dict(mscale=1.0, mscale_all_dim=1.0), 1),
        (dict(mscale=2.0, mscale_all_dim=1.0), (0.2 * np.log(4) + 1) / (0.1 * np.log(4) + 1)),
        (dict(mscale=2.0, mscale_all_dim=1.0, attention_factor=0.7), 0.7),
    ],
)
def test_yarns_tables_have_the_amplitude_of_its_fields(more, amplitude):
    """Oracle: by hand, as transformers derives it: the cosines of position 0."""
    config = dataclasses.replace(CONFIGS["gqa"], rope_scaling=RopeScaling(**YARN, **more))
    cos, sin = position_tables(config, jnp.zeros(1, jnp.int32))
    np.testing.assert_allclose(cos, amplitude, rtol=1e-6)
    assert not sin.any()


def test_linear_scaling_slows_every_pair_by_the_factor():
    """Oracle: the plain tables of positions that are a quarter."""
    plain = CONFIGS["gqa"]
    scaled = dataclasses.replace(plain, rope_scaling=RopeScaling("linear", 4.0))
    tables = position_tables(plain, jnp.arange(3)), position_tables(scaled, 4 * jnp.arange(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *tables)
