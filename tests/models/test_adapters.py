"""Adapters as a parameterisation: the same recomputed, in stages, on other meshes and in decoding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, adapters, forward
from deepseek_jax.models.adapter_modules import adapter_places
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import abstract_adapted, join, merged, split, with_adapter
from deepseek_jax.models.low_rank import dense, is_weight
from deepseek_jax.models.params import abstract_init
from deepseek_jax.models.quantized import quantized
from deepseek_jax.parallel import logical_names, make_mesh, put_batch, shardings
from deepseek_jax.rollout import generate
from deepseek_jax.training import make_optimizer
from deepseek_jax.training.state import state_maker
from deepseek_jax.training.update import Update
from tests.parallel.updates import GRADIENTS, V3, boxed_shapes, host_params, make_batch
from tests.quick import others_slow
from tests.recipes.small import one_device
from tests.tiny import random_leaves, tiny_model

EVERY = ("all-linear", "experts.gate_up_proj", "experts.down_proj")
SETTINGS = AdapterSettings(rank=2, alpha=4.0, targets=EVERY)
HOWS = {
    "fsdp": dict(mesh=dict(fsdp=8)),
    "expert, tensor": dict(mesh=dict(expert=4, tensor=2)),
    "context": dict(mesh=dict(context=8)),
    "pipeline": dict(mesh=dict(pipeline=2, data=4)),
    "scanned": dict(scan_layers=True),
    "dots": dict(scan_layers=True, remat="dots"),
    "full": dict(scan_layers=True, remat="full"),
    "micro-batches": dict(micro_batches=2),
}


def noisy(params):
    return dataclasses.replace(params, adapter=random_leaves(params.adapter, jax.random.key(1)))


def one_update(mesh=None, micro_batches=1, **how):
    """(loss, the adapter's gradients, TrainState after, the base before), of a tiny V3 on a mesh."""
    config = ModelConfig(**V3, **how)
    mesh = make_mesh(**mesh) if mesh else one_device()

    def loss_fn(params, batch, rng):
        return next_token_loss(config, params, batch)

    with jax.set_mesh(mesh):
        places = shardings(mesh, logical_names(boxed_shapes()), host_params())
        base = jax.device_put(host_params(), places)
        params = noisy(with_adapter(config, base, SETTINGS, mesh, 0))
        create, placed = state_maker(params, GRADIENTS, mesh)
        update = Update(loss_fn, GRADIENTS, placed, micro_batches=micro_batches)
        batch = put_batch(mesh, make_batch(packed=True))
        state, metrics = update(create(params), batch, jax.random.key(0))
    return jax.device_get((metrics["loss"], state.opt_state[0].trace, state.frozen.base))


@pytest.fixture(scope="module")
def plain():
    return one_update()


@pytest.mark.parametrize(("target", "half"), [("gate_proj", 0), ("up_proj", 1)])
def test_an_adapter_of_a_half_leaves_the_other(target, half):
    """Oracle: by hand: of [... 2 mlp] the gate stands before what it multiplies."""
    config, base = tiny_model("gqa")
    whole = base["dense_layers"]["ffn"]["gate_up"]
    settings = AdapterSettings(rank=2, alpha=4.0, targets=(target,))
    params = with_adapter(config, jax.tree.map(jnp.copy, base), settings, one_device(), 0)
    changed = merged(noisy(params))["dense_layers"]["ffn"]["gate_up"] != whole
    assert changed[..., half, :].all() and not changed[..., 1 - half, :].any()


@pytest.mark.parametrize("name", others_slow(HOWS, "dots"))
def test_an_update_is_that_of_one_device_and_leaves_the_base(plain, name):
    """Oracle: the same update unrolled on one device, without recomputation; the base as it was loaded."""
    loss, gradients, base = one_update(**HOWS[name])
    np.testing.assert_allclose(loss, plain[0], rtol=1e-5)

    def compare(found, wanted):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)

    jax.tree.map(compare, gradients, plain[1])
    jax.tree.map(np.testing.assert_array_equal, base, host_params())


@pytest.mark.slow
def test_a_base_in_another_order_in_memory_learns_the_same(plain, monkeypatch):
    """Oracle: the same update of a base in the usual order. A TPU's own order, here on a CPU."""
    orders = []

    def as_on_tpu(path, leaf):
        halves = path[-1].key == "gate_up" and leaf.ndim == 4
        orders.append(halves)
        return Format(Layout((0, 2, 1, 3)), leaf.sharding) if halves else leaf.format

    monkeypatch.setattr(adapters, "as_read", as_on_tpu)
    loss, gradients, base = one_update(scan_layers=True, remat="full")
    assert any(orders)
    np.testing.assert_allclose(loss, plain[0], rtol=1e-5)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    jax.tree.map(near, gradients, plain[1])
    jax.tree.map(np.testing.assert_array_equal, base, host_params())


def test_gradients_are_those_of_the_dense_weights_projected(plain):
    """Oracle: the chain rule in numpy, from the gradient of the merged model's dense weights: of a it is
    scale * dW b^T, of b scale * a^T dW.
    """
    config = ModelConfig(**V3)
    base = jax.tree.map(jnp.asarray, host_params())
    params = noisy(with_adapter(config, base, SETTINGS, one_device(), 0))
    batch = jax.tree.map(jnp.asarray, make_batch(packed=True))

    @jax.jit
    @jax.grad
    def gradient(dense):
        return next_token_loss(config, dense, batch)[0]

    dense = gradient(merged(params))
    _, gradients, _ = plain

    def pair(stack, module):
        own, found = params.adapter[stack][module], gradients[stack][module]
        return *(np.asarray(own[n]) for n in ("lora_a", "lora_b")), found["lora_a"], found["lora_b"]

    def near(found, wanted):
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)

    a, b, of_a, of_b = pair("dense_layers", "self_attn.o_proj")
    dw = np.asarray(dense["dense_layers"]["attention"]["out"])
    near(of_a, 2 * np.einsum("lhud,lrd->lhur", dw, b))
    near(of_b, 2 * np.einsum("lhur,lhud->lrd", a, dw))
    a, b, of_a, of_b = pair("moe_layers", "mlp.experts.gate_up_proj")
    dw = np.asarray(dense["moe_layers"]["ffn"]["gate_up"])
    near(of_a, 2 * np.einsum("ledzf,lerzf->ledr", dw, b))
    near(of_b, 2 * np.einsum("ledr,ledzf->lerzf", a, dw))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gqa", "mla_moe"])
def test_completions_are_those_of_the_merged_model(kind):
    """Oracle: the same rollout from dense weights, merged beforehand, token by token."""
    config, params = tiny_model(kind)
    targets = EVERY if config.num_moe_layers else EVERY[:1]
    settings = dataclasses.replace(SETTINGS, targets=targets)
    adapted = noisy(with_adapter(config, params, settings, one_device(), 0))
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    options = dict(n=3, max_completion_length=12, slots=4)
    found, expected, base = (
        generate(config, p, prompts, **options) for p in (adapted, jax.jit(merged)(adapted), params)
    )
    np.testing.assert_array_equal(found.completion_ids, expected.completion_ids)
    np.testing.assert_allclose(found.sampler_logprobs, expected.sampler_logprobs, atol=1e-5)
    assert not np.array_equal(found.completion_ids, base.completion_ids)


@pytest.mark.slow
def test_int8_weights_are_those_of_numpy_and_compute_what_they_hold():
    """Oracle: numpy: each output's largest magnitude is 127.5 steps, so that no weight is off by more than
    half a step; and the logits of dense weights with the rounded numbers in them.
    """
    config, params = tiny_model("mla_moe")
    found = quantized(jax.tree.map(jnp.copy, params))
    # Experts, inputs and two halves of outputs, in two layers' stack
    weight, own = params["moe_layers"]["ffn"]["gate_up"], found["moe_layers"]["ffn"]["gate_up"]
    steps = np.abs(weight).max(2, keepdims=True) / 127.5
    np.testing.assert_allclose(own.scale, steps, rtol=1e-6)
    assert own.qvalue.dtype == np.int8 and np.abs(own.qvalue - weight / steps).max() < 0.501
    assert (
        found["embedding"] is not None and found["moe_layers"]["ffn"]["router"].dtype == "float32"
    )
    rounded = jax.tree.map(dense, found, is_leaf=is_weight)
    off = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), rounded, params)
    assert 0 < max(jax.tree.leaves(off)) < 0.01
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 16))
    logits = [np.asarray(forward(config, p, tokens)) for p in (found, rounded)]
    np.testing.assert_allclose(*logits, atol=1e-5)
    prompts, options = [[1, 2, 3]], dict(n=2, max_completion_length=8, slots=2)
    ours, theirs = (generate(config, p, prompts, **options) for p in (found, rounded))
    np.testing.assert_array_equal(ours.completion_ids, theirs.completion_ids)
    config, params = tiny_model("mtp")
    with pytest.raises(ValueError, match="speculative=True does not take weights in int8"):
        generate(
            config, quantized(jax.tree.map(jnp.copy, params)), prompts, speculative=True, **options
        )


def test_splitting_is_undone_by_joining_and_moments_are_of_the_adapter_alone():
    """Oracle: the tree itself; and by hand, two moments of each matrix."""
    config, params = tiny_model("gqa")
    settings = dataclasses.replace(SETTINGS, targets=EVERY[:1])
    decoder = with_adapter(config, params, settings, one_device(), 0)
    tree = {"decoder": decoder, "head": {"weight": jnp.ones(3)}}
    trained, frozen = split(tree)
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(tree)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(decoder.adapter)) + 3
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == numbers
    tx = make_optimizer(lambda _: 1e-3, b1=0.9, b2=0.9, weight_decay=0.1, max_grad_norm=1.0)
    moments = [x for x in jax.tree.leaves(tx.init(trained)) if x.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * numbers
    assert split(params) == (params, None)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_shapes_of_an_adapted_model_are_the_models(quantize):
    """Oracle: the arrays, and where they lie on a mesh; the base in int8 where the settings say so. The file
    of an adapter is read into the same places.
    """
    config, params = tiny_model("mla_moe")
    mesh = make_mesh(data=2, expert=2, tensor=2)
    settings = dataclasses.replace(SETTINGS, quantize=quantize)
    places = shardings(mesh, logical_names(abstract_init(config)), params)
    base = jax.device_put(params, places)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), base
    )
    found = abstract_adapted(config, shapes, settings, mesh)
    base = quantized(base) if quantize else base
    made = with_adapter(config, base, settings, mesh, 0)
    assert found.scale == made.scale == 2.0
    assert jax.tree.structure(found) == jax.tree.structure(made)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(made), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
        assert isinstance(ours.format, Format) or quantize
    read = adapter_places(config, made.adapter, mesh)
    assert read == jax.tree.map(lambda leaf: leaf.sharding, made.adapter)
    assert len({place.spec for place in jax.tree.leaves(read)}) > 3
    with pytest.raises(ValueError, match="^mlp.gate_proj is not a module of this model"):
        adapter_places(config, {"moe_layers": {"mlp.gate_proj": {}}}, mesh)
