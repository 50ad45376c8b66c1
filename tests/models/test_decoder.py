"""The residual stack: its recomputation, and its expert loads after a layer that gave NaN."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals  # JAX prints them, or nothing
from jax.extend.core import jaxprs_in_params

from configs import models
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import (
    ModelConfig,
    forward,
    hidden_states,
    init_params,
    layer_states,
    random_params,
)
from deepseek_jax.ops.platform import SIZES
from deepseek_jax.parallel import make_mesh
from launch.planning.hlo import program_cost
from tests.parallel.updates import V3, boxed_shapes, make_batch
from tests.quick import others_slow
from tests.tiny import MLA_MOE, tiny_model


def test_behind_a_layer_that_gave_nan_no_load_is_a_number():
    """Oracle: the loads of the same tokens through sound layers: two of three count numbers."""
    config, params = tiny_model("mla_moe")
    config = ModelConfig(**MLA_MOE | dict(num_hidden_layers=4))
    params = params | {
        "moe_layers": jax.tree.map(lambda x: jnp.concatenate([x] * 3), params["moe_layers"])
    }
    tokens = np.random.default_rng(0).integers(0, 50, (2, 7))
    ones = np.ones_like(tokens)

    def loads(params):
        return hidden_states(config, params, tokens, segment_ids=ones, positions=ones)[1].load

    wanted = loads(params)
    down = params["moe_layers"]["ffn"]["down"].at[1].set(jnp.nan)
    params["moe_layers"]["ffn"]["down"] = down
    found = loads(params)
    np.testing.assert_array_equal(found[:2], wanted[:2])
    assert np.isnan(found[2]).all() and wanted.sum() == 3 * 2 * 14


def remats(jaxpr, loop=1):
    """(turns of the innermost loop around it, prevent_cse) of every recomputed part of a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("checkpoint", "remat2"):
            yield loop, eqn.params["prevent_cse"]
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else loop
        turns = 1 if turns == eqn.params.get("unroll") else turns
        for inner in jaxprs_in_params(eqn.params):
            yield from remats(inner, turns)


@pytest.mark.parametrize("scan_layers", others_slow([False, True], True))
def test_only_layers_in_a_loop_may_be_looked_up_instead_of_recomputed(scan_layers):
    """Oracle: the program: a stack of one dense layer, one of two with experts, and the multi-token block."""
    config = ModelConfig(**V3, remat="full", scan_layers=scan_layers)

    def loss(params, batch):
        return next_token_loss(config, params, batch, mtp_weight=0.3)[0]

    program = jax.make_jaxpr(jax.grad(loss))(nn.unbox(boxed_shapes()), make_batch(packed=True))
    found = set(remats(program.jaxpr))
    assert found == ({(1, True), (2, False)} if scan_layers else {(1, True)})


@pytest.mark.slow
def test_remat_of_all_but_attention_works_through_its_blocks_once_before_the_gradient():
    """Oracle: by hand, the products that it saves over "full": scores and values of 36 pairs of blocks of 128
    tokens, for 8 heads of 48 and 16, 3 layers and 2 rows; counted in the compiled programs.
    """
    sizes = models.deepseek_v3_tiny() | dict(num_hidden_layers=3, max_position_embeddings=1024)

    def flops(policy):
        config = ModelConfig(**sizes, scan_layers=True, remat=policy)
        params = jax.eval_shape(lambda: nn.unbox(init_params(config, jax.random.key(0))))
        loss = jax.grad(lambda p, tokens: jnp.square(forward(config, p, tokens)).mean())
        tokens = jax.ShapeDtypeStruct((2, 1024), jnp.int32)
        text = jax.jit(loss).lower(params, tokens).compile().as_text()
        return program_cost(text, {"data": 1}).flops.total()

    by_hand = 36 * 2 * 128**2 * (48 + 16) * 8 * 3 * 2
    assert flops("full") - flops("attention") == by_hand


def test_a_bounded_buffer_in_a_pipeline_is_refused():
    """Oracle: the message names both fields."""
    config = ModelConfig(**V3, expert_buffer=1.25)
    params = nn.unbox(boxed_shapes())
    with (
        jax.set_mesh(make_mesh(pipeline=2, data=4)),
        pytest.raises(ValueError, match=r"model.expert_buffer=1.25 .* mesh.pipeline=2"),
    ):
        jax.eval_shape(lambda p: next_token_loss(config, p, make_batch(packed=True)), params)


@pytest.mark.parametrize("micro_batches", [None, 4])
def test_layers_in_stages_compute_what_they_do_one_after_another(micro_batches):
    """Oracle: the model without a mesh, to float32's rounding; by hand, how many turns two stages take."""
    config, params = tiny_model("gqa")
    tokens = np.random.default_rng(0).integers(0, 50, (4, 6))
    wanted = forward(config, params, tokens)
    config = dataclasses.replace(config, pipeline_micro_batches=micro_batches)
    with jax.set_mesh(make_mesh(pipeline=2, data=1, devices=jax.devices()[:2])):
        traced = jax.jit(forward, static_argnums=0).trace(config, params, tokens)
        found = traced.lower().compile()(params, tokens)
        lengths = {
            one.params["length"] for one in traced.jaxpr.eqns if one.primitive.name == "scan"
        }
        with pytest.raises(ValueError, match="single layers do not leave"):
            jax.eval_shape(lambda p: layer_states(config, p, tokens), params)
        with pytest.raises(ValueError, match="a rollout kept do not enter"):
            config, params = tiny_model("mla_moe")
            kept = np.zeros((1, 4, 6, 2), np.uint16)
            jax.eval_shape(
                lambda p: hidden_states(config, p, tokens, recorded_experts=kept), params
            )
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)
    assert (micro_batches or 2) + 1 in lengths


def test_each_remat_policy_saves_more_than_the_next(monkeypatch):
    """Oracle: what autodiff saves between the passes, by the program: numbers, apart from the arguments. A
    row of three blocks, so that attention's results are named.
    """
    for name in ("longest_whole_row", "attention_block"):
        monkeypatch.setitem(SIZES, name, {"any": 8})
    config, params = tiny_model("gqa")
    tokens = np.random.default_rng(0).integers(0, 50, (2, 24))

    def saved(remat):
        own = dataclasses.replace(config, remat=remat)
        found = saved_residuals(lambda p: jnp.square(forward(own, p, tokens)).mean(), params)
        return sum(aval.size for aval, source in found if "argument" not in source)

    none, dots, selective, attention, full = map(
        saved, ("none", "dots", "selective", "attention", "full")
    )
    assert none > dots > attention > full and none > selective > attention
    own = dataclasses.replace(config, remat="offload")
    gradient = jax.grad(lambda p: jnp.square(forward(own, p, tokens)).mean())
    assert str(jax.make_jaxpr(gradient)(params)).count("<host>[2,24,24]") >= 2


def test_random_parameters_are_those_of_seed_zero_on_one_device():
    """Oracle: the same call with all that it leaves out."""
    config, _ = tiny_model("gqa")
    mesh = make_mesh(devices=jax.devices()[:1])
    pair = random_params(config), random_params(config, mesh, 0)
    jax.tree.map(np.testing.assert_array_equal, *pair)
    assert pair[0]["embedding"].sharding.device_set == {jax.devices()[0]}
