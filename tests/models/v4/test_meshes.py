"""One update of DeepSeek-V4 on eight devices is that of one: all kinds of layers, packed rows, every loss."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models.v4.config import CSA, HCA
from deepseek_jax.models.v4.decoder import forward, init_params
from deepseek_jax.parallel import logical_names, make_mesh, shardings
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.training.state import TrainState, state_shardings
from tests.models.v4 import tiny
from tests.parallel.updates import GRADIENTS, SPEED, make_batch, make_step, on_host
from tests.quick import others_slow

CONFIG = tiny.config(
    # The module for later tokens is a layer of a window alone
    num_hidden_layers=2,
    layer_types=(CSA, HCA),
    vocab_size=32,
    num_attention_heads=8,
    q_lora_rank=16,
    o_groups=8,
    o_lora_rank=16,
    index_topk=2,
    num_nextn_predict_layers=1,
    indexer_loss="sparse",
)
MESHES = {
    "data": dict(data=8),
    "fsdp": dict(fsdp=8),
    "expert": dict(expert=8),
    "context": dict(context=8),
    "tensor": dict(tensor=8),
    "fsdp, expert, context": dict(fsdp=2, expert=2, context=2),
    "data, context, tensor": dict(data=2, context=2, tensor=2),
}


def boxed_shapes(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


@functools.cache
def host_params():
    """Every parameter with noise of size 0.2, scales around one; tables of experts stay."""
    rng = np.random.default_rng(1)

    def noise(path, leaf):
        if path[-1].key == "expert_table":
            return (np.arange(leaf.size).reshape(leaf.shape) % 8).astype(np.float32)
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(mean, 0.2, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(noise, nn.unbox(boxed_shapes(CONFIG)))


def one_update(mesh):
    """(metrics, gradients, parameters after), as numpy."""
    host = host_params()
    with jax.set_mesh(mesh):
        places = shardings(mesh, logical_names(boxed_shapes(CONFIG)), host)
        placed = state_shardings(mesh, places, host, GRADIENTS)
        create = jax.jit(TrainState.create, static_argnums=1, out_shardings=placed)
        state = create(host, GRADIENTS)
        step = jax.jit(make_step(CONFIG, micro_batches=1), out_shardings=(placed, None))
        state, metrics = step(state, put_share(mesh, make_batch(packed=True)), jax.random.key(0))
        return on_host(metrics, state)


@functools.cache
def plain():
    return one_update(make_mesh(data=1, devices=jax.devices()[:1]))


@pytest.mark.parametrize("mesh", others_slow(list(MESHES), "fsdp, expert, context"))
def test_an_update_is_that_of_one_device(mesh):
    """Oracle: the update on one device: all losses to 1e-5, gradients to 1e-4 of each tensor's largest, for
    float32 sums in another order; loads and the moved biases exactly.
    """
    metrics, gradients, params = one_update(make_mesh(**MESHES[mesh]))
    exact_metrics, exact_gradients, exact_params = plain()
    counts, exact_counts = metrics.pop("counts"), exact_metrics["counts"]
    jax.tree.map(np.testing.assert_array_equal, counts, exact_counts)
    assert metrics.keys() == exact_metrics.keys() - {"counts"}
    for name, value in metrics.items():
        np.testing.assert_allclose(value, exact_metrics[name], rtol=1e-5, err_msg=name)

    def compare(path, ours, exact):
        error = np.abs(ours - exact).max()
        assert error <= 1e-4 * np.abs(exact).max(), (jax.tree_util.keystr(path), error)

    jax.tree.map_with_path(compare, gradients, exact_gradients)
    jax.tree.map(np.testing.assert_array_equal, params, exact_params)


def test_the_plain_update_feeds_every_parameter_and_moves_every_bias():
    """Oracle: by hand: each real token has three experts in each of two layers and the module's block.
    Gradients are zero for biases and tables alone; one bias of each router moves by its speed.
    """
    metrics, gradients, params = plain()
    tokens = make_batch(packed=True)["num_tokens"]
    counts = metrics["counts"]
    assert counts.keys() == {"layers_0", "layers_1", "mtp_0"}
    assert all(counts[f"layers_{i}"].sum() == 3 * tokens for i in range(2))
    assert metrics["indexer_loss"] > 0 and metrics["mtp_loss"] > 0 and metrics["balance_loss"] > 0
    for path, leaf in jax.tree.leaves_with_path(gradients):
        fixed = path[-1].key in ("router_bias", "expert_table")
        assert fixed != bool(np.abs(leaf).max() > 0), path
    before = host_params()
    moved = params["layers_1"]["ffn"]["router_bias"] - before["layers_1"]["ffn"]["router_bias"]
    assert np.abs(moved).max() == pytest.approx(SPEED, rel=1e-3)


def test_a_pipeline_is_refused():
    """Oracle: the message names the field, and nothing compiles before it."""
    tokens = np.zeros((2, 16), np.int32)
    with (
        jax.set_mesh(make_mesh(pipeline=2, data=4)),
        pytest.raises(ValueError, match="mesh.pipeline=2: .* set mesh.pipeline to 1"),
    ):
        jax.eval_shape(lambda p: forward(CONFIG, p, tokens), host_params())


def test_groups_of_heads_that_do_not_split_are_refused():
    """Oracle: the message names parameter, axis and field: two groups over four devices."""
    config, mesh = tiny.config(), make_mesh(tensor=4, data=2)
    boxed = boxed_shapes(config)
    with pytest.raises(ValueError, match="out_down: axis out_groups=2 .* mesh.tensor=4"):
        shardings(mesh, logical_names(boxed), nn.unbox(boxed))


@pytest.mark.slow
def test_each_device_attends_from_its_own_queries_alone():
    """Oracle: an eighth of what one device multiplies in the layers, by XLA's count, where rows are split by
    token, within the part that all devices do.
    """
    batch = make_batch(packed=True)

    def flops(mesh):
        with jax.set_mesh(mesh):
            loss = jax.jit(lambda p, b: next_token_loss(CONFIG, p, b)[0])
            return (
                loss.lower(host_params(), put_share(mesh, batch)).compile().cost_analysis()["flops"]
            )

    alone = flops(make_mesh(data=1, devices=jax.devices()[:1]))
    assert flops(make_mesh(data=1, context=8)) < alone / 8 * 1.5
