"""One update of V3's whole block, with balance and multi-token losses and the bias update, in float32; and
one of V3.2's.

The tests of this folder split it into parts and over devices.
"""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax

from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, init_params
from deepseek_jax.parallel import logical_names, make_mesh, shardings
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.training.state import TrainState, state_shardings
from deepseek_jax.training.update import make_train_step
from tests.tiny import MLA_MOE

V3 = MLA_MOE | dict(
    vocab_size=32,
    num_hidden_layers=3,
    num_attention_heads=8,
    q_lora_rank=16,
    kv_lora_rank=16,
    num_nextn_predict_layers=1,
    max_position_embeddings=64,
)
# Its indexers learn too, in the same update. Documents are longer than what a query selects
V3_2 = V3 | dict(
    model_type="deepseek_v32",
    index_n_heads=4,
    index_head_dim=8,
    index_topk=4,
    indexer_loss="sparse",
)
MODELS = {"V3": V3, "V3.2": V3_2}
SPEED = 0.01
# Its state is what it was given
GRADIENTS = optax.chain(optax.trace(decay=0.0), optax.set_to_zero())


def documents():
    """Two documents a packed row of 16 tokens: 32 rows' worth, of lengths that differ."""
    rng = np.random.default_rng(0)
    lengths = [(n, 16 - n - n % 2) for n in rng.integers(3, 13, 32)]
    return [[rng.integers(0, 32, n) for n in pair] for pair in lengths]


def make_batch(packed):
    """The documents two to a row, or one to a row."""
    rows = documents() if packed else [[document] for pair in documents() for document in pair]
    names = ("tokens", "targets", "segment_ids", "positions", "loss_mask")
    batch = {name: np.zeros((len(rows), 16), np.int32) for name in names}
    for index, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row):
            n = len(document)
            place = index, slice(start, start + n)
            batch["tokens"][place] = document
            batch["targets"][place] = np.roll(document, -1)
            batch["segment_ids"][place] = number + 1
            batch["positions"][place] = np.arange(n)
            batch["loss_mask"][index, start : start + n - 1] = 1
            start += n
    batch["loss_mask"] = batch["loss_mask"].astype(bool)
    batch["normalizer"] = np.float32(batch["loss_mask"].sum())
    batch["num_tokens"] = np.float32((batch["segment_ids"] > 0).sum())
    return batch


@functools.cache
def host_params(model="V3"):
    """Every parameter with noise of size 0.2, scales around one: made on the host, since to compile an init
    for every mesh would take longer than to compile the step.
    """
    rng = np.random.default_rng(1)

    def noise(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(mean, 0.2, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(noise, nn.unbox(boxed_shapes(model)))


def boxed_shapes(model="V3"):
    return jax.eval_shape(lambda: init_params(ModelConfig(**MODELS[model]), jax.random.key(0)))


def one_update(mesh, *, micro_batches, packed, remat, scan_layers, model="V3"):
    """(metrics, TrainState after) on a Mesh; the state's opt_state[0].trace holds the gradients."""
    config = ModelConfig(**MODELS[model], remat=remat, scan_layers=scan_layers)
    step = make_step(config, micro_batches)
    host, batch = host_params(model), make_batch(packed)
    with jax.set_mesh(mesh):
        places = shardings(mesh, logical_names(boxed_shapes(model)), host)
        placed = state_shardings(mesh, places, host, GRADIENTS)
        state = jax.tree.map(
            lambda x, place: jax.make_array_from_callback(x.shape, place, lambda at: x[at]),
            jax.device_get(jax.jit(TrainState.create, static_argnums=1)(host, GRADIENTS)),
            placed,
        )
        step = jax.jit(step, out_shardings=(placed, None))
        state, metrics = step(state, put_share(mesh, batch), jax.random.key(0))
        return metrics, state


def make_step(config, micro_batches):
    """make_train_step of the update, which also reports each expert's tokens."""

    def loss_fn(params, batch, rng):
        loss, metrics = next_token_loss(config, params, batch, balance_weight=0.01, mtp_weight=0.3)
        return loss, metrics | {"counts": {name: r.load for name, r in metrics["routing"].items()}}

    return make_train_step(
        loss_fn,
        GRADIENTS,
        micro_batches=micro_batches,
        bias_update_speed=optax.constant_schedule(SPEED),
    )


@functools.cache
def plain(model="V3"):
    """The reference: (metrics, gradients, parameters after), as numpy, of one device."""
    mesh = make_mesh(data=1, devices=jax.local_devices()[:1])
    how = dict(micro_batches=1, packed=True, remat="none", scan_layers=False, model=model)
    return on_host(*one_update(mesh, **how))


def on_host(metrics, state):
    """(metrics, gradients, parameters after) of an update, as numpy."""
    return jax.device_get((metrics, state.opt_state[0].trace, state.params))


def check(metrics, state, wanted, rtol=1e-5):
    """Hold an update, as far as this process has it, to `wanted`, as plain() gives it. rtol, of each tensor's
    largest: float32 sums in another order; counts and biases exactly.
    """
    wanted_metrics, wanted_gradients, wanted_params = wanted
    assert metrics.keys() == wanted_metrics.keys()
    for name, value in metrics.items():
        if name != "counts":
            near = 1e-6 if name.startswith(("max_vio", "load_entropy")) else rtol  # of counts
            np.testing.assert_allclose(value, wanted_metrics[name], rtol=near, err_msg=name)

    def compare(path, ours, theirs, tolerance):
        for shard in ours.addressable_shards:
            error = np.abs(np.asarray(shard.data) - theirs[shard.index]).max()
            assert error <= tolerance * np.abs(theirs).max(), (jax.tree_util.keystr(path), error)

    exactly = functools.partial(compare, tolerance=0)
    jax.tree.map_with_path(exactly, metrics["counts"], wanted_metrics["counts"])
    gradients = state.opt_state[0].trace
    jax.tree.map_with_path(functools.partial(compare, tolerance=rtol), gradients, wanted_gradients)
    # Nothing else moves the parameters: the biases have moved
    jax.tree.map_with_path(exactly, state.params, wanted_params)
