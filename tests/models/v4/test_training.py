"""The losses of DeepSeek-V4's training, its recomputation, and a few updates on text."""

import dataclasses
import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax._src.ad_checkpoint import saved_residuals  # JAX prints them, or nothing

from deepseek_jax.losses.next_token import next_token_loss, parts_trained
from deepseek_jax.models.v4.config import CSA, HCA, WINDOW
from deepseek_jax.models.v4.decoder import forward, init_params, predict_further, run_layers
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from tests.losses.test_next_token import make_batch
from tests.models.v4 import tiny
from tests.tiny import kept, random_leaves

# The module for later tokens is a layer of a window alone
SMALL = dict(num_hidden_layers=2, layer_types=(CSA, HCA))
CONFIG = tiny.config(**SMALL, num_nextn_predict_layers=1, indexer_loss="sparse", index_topk=2)


@functools.cache
def random_params(config):
    """Every parameter random, and tables as they are."""
    return kept(f"{config} for V4's training", lambda: make_params(config))


@functools.partial(jax.jit, static_argnums=0)
def make_params(config):
    made = nn.unbox(init_params(config, jax.random.key(0)))
    noisy = random_leaves(made, jax.random.key(1))

    def table_or(path, plain, noisy):
        return plain if path[-1].key == "expert_table" else noisy

    return jax.tree.map_with_path(table_or, made, noisy)


def test_the_gradient_is_the_sum_of_its_parts():
    """Oracle: each loss by its equation over the decoder's results: cross-entropy by log_softmax; that of the
    module, which reads the token after and predicts the one after that; balance and indexers by their sums.
    """
    params, batch = random_params(CONFIG), make_batch()
    places = dict(segment_ids=batch["segment_ids"], positions=batch["positions"])

    def cross_entropy(hidden, params, targets, mask):
        logprobs = jax.nn.log_softmax(hidden @ params["head"].T)
        picked = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
        return -jnp.where(mask, picked, 0).sum() / batch["normalizer"]

    def parts(params):
        states = run_layers(CONFIG, params, batch["tokens"], **places)
        next_token = cross_entropy(states.hidden, params, batch["targets"], batch["loss_mask"])
        shift = {
            name: np.pad(batch[name][:, 1:], ((0, 0), (0, 1))) for name in batch if batch[name].ndim
        }
        same = shift["segment_ids"] == batch["segment_ids"]
        hidden, _, report = predict_further(
            CONFIG,
            params,
            0,
            states.streams,
            shift["tokens"],
            segment_ids=np.where(same, batch["segment_ids"], 0),
            positions=batch["positions"],
        )
        later = cross_entropy(hidden, params, shift["targets"], same & shift["loss_mask"])
        reports = [*states.reports.values(), report]
        balance = sum(r.routing.balance for r in reports) / batch["num_tokens"]
        indexers = [r.indexer for r in reports if r.indexer is not None]
        return next_token, 0.3 * later, 0.01 * balance, sum(indexers) / batch["num_tokens"]

    def whole(params):
        return next_token_loss(CONFIG, params, batch, balance_weight=0.01, mtp_weight=0.3)[0]

    @jax.jit
    def run(params):
        values, pull = jax.vjp(parts, params)
        return values, [pull(tuple(map(jnp.float32, row)))[0] for row in np.eye(4)]

    values, gradients = jax.device_get(run(params))
    assert all(value > 1e-4 for value in values)
    for gradient in gradients:
        assert sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)) > 1e-8
    value, gradient = jax.device_get(jax.jit(jax.value_and_grad(whole))(params))
    np.testing.assert_allclose(value, sum(values), rtol=1e-5)
    exact = jax.tree.map(lambda *parts: sum(parts), *gradients)
    for ours, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5 * np.abs(other).max(), rtol=0)


def text_batch(length=64):
    """The license's bytes in rows of one document each."""
    data = Path(__file__).parents[3].joinpath("LICENSE").read_bytes()
    rows = np.frombuffer(data[: 8 * (length + 1)], np.uint8).reshape(8, length + 1)
    rows = rows.astype(np.int32)
    ones = np.ones((8, length), np.int32)
    return dict(
        tokens=rows[:, :-1],
        targets=rows[:, 1:],
        segment_ids=ones,
        positions=np.arange(length, dtype=np.int32) * ones,
        loss_mask=ones.astype(bool),
        normalizer=np.float32(ones.size),
        num_tokens=np.float32(ones.size),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [{}, pytest.param(dict(dtype="bfloat16", remat="full"), marks=pytest.mark.slow)],
    ids=["float32", "bfloat16"],
)
def test_ten_updates_lower_the_loss_on_text(how):
    """Oracle: the loss before is that of a guess among 256 bytes; ten of AdamW's updates learn which bytes
    are frequent, and tables stay.
    """
    config = tiny.config(
        **SMALL,
        vocab_size=256,
        num_nextn_predict_layers=1,
        indexer_loss="sparse",
        swiglu_limit=10.0,
        **how,
    )
    optimizer = OptimizerSettings(learning_rate=0.01, weight_decay=0.1)
    tx = optimizer.make(10, parts_trained(config, with_mtp=True))

    def loss_fn(params, batch, rng):
        return next_token_loss(config, params, batch, balance_weight=1e-4, mtp_weight=0.3)

    step = make_train_step(loss_fn, tx, bias_update_speed=optax.constant_schedule(0.001))
    params = jax.jit(lambda rng: nn.unbox(init_params(config, rng)))(jax.random.key(0))
    state = jax.jit(lambda params: TrainState.create(params, tx))(params)
    before, step = state.params, jax.jit(step)
    losses = []
    for _ in range(11):
        state, metrics = step(state, text_batch(), jax.random.key(1))
        assert metrics["nonfinite"] == 0
        losses.append([float(metrics[name]) for name in ("next_token_loss", "mtp_loss")])
    (first, first_mtp), (last, last_mtp) = losses[0], losses[-1]
    assert first == pytest.approx(np.log(256), abs=0.1)
    assert last < first - 1 and last_mtp < first_mtp - 1
    np.testing.assert_array_equal(
        *(params["layers_0"]["ffn"]["expert_table"] for params in (before, state.params))
    )
    assert metrics.keys() >= {"max_vio/layers_0", "load_entropy/mtp_0", "max_vio", "indexer_loss"}


POLICIES = [
    "full",
    *(pytest.param(p, marks=pytest.mark.slow) for p in ("attention", "dots", "selective")),
]


@pytest.mark.parametrize("remat", POLICIES)
def test_recomputed_gradients_are_the_same(remat):
    """Oracle: the gradients without recomputation, of every loss; float32 sums in another order."""
    small = tiny.config(**SMALL, indexer_loss="sparse", index_topk=2)
    params, batch = random_params(small), make_batch()

    def gradients(remat):
        config = dataclasses.replace(small, remat=remat)
        loss = functools.partial(next_token_loss, config, balance_weight=0.01)
        return jax.jit(jax.grad(loss, has_aux=True))(params, batch)[0]

    for ours, exact in zip(
        *map(jax.tree.leaves, (gradients(remat), gradients("none"))), strict=True
    ):
        np.testing.assert_allclose(ours, exact, atol=1e-5 * np.abs(exact).max(), rtol=0)


def test_each_remat_policy_saves_less_than_the_one_before():
    """Oracle: what autodiff saves between the passes, by the program: numbers, apart from the arguments. With
    "full" these are the streams before each layer, and what follows the layers.
    """
    config = tiny.config(num_hidden_layers=1, layer_types=(CSA,))
    tokens = np.zeros((2, 48), np.int32)
    params = random_params(config)

    def saved(remat):
        own = dataclasses.replace(config, remat=remat)
        found = saved_residuals(lambda p: jnp.square(forward(own, p, tokens)).mean(), params)
        return sum(aval.size for aval, source in found if "argument" not in source)

    names = "none", "dots", "selective", "attention", "full"
    none, dots, selective, attention, full = map(saved, names)
    streams = 2 * 48 * config.hc_mult * config.hidden_size
    assert none > dots > selective > attention > full
    assert full < 8 * streams
    offloaded = dataclasses.replace(config, remat="offload")
    program = jax.make_jaxpr(jax.grad(lambda p: forward(offloaded, p, tokens).sum()))(params)
    assert str(program).count("<host>[2,48,4,32]") >= 1


@pytest.mark.slow
def test_recomputation_takes_half_the_memory_of_eight_layers():
    """Oracle: the bytes that XLA reserves between arguments and results of a gradient, for a row of 1,024
    tokens: measured 200 MiB, and 105 with recomputation.
    """
    config = tiny.config(
        num_hidden_layers=8,
        layer_types=(WINDOW, WINDOW, *(CSA, HCA) * 3),
        hidden_size=64,
        max_position_embeddings=1024,
    )
    params = jax.eval_shape(lambda: nn.unbox(init_params(config, jax.random.key(0))))
    tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32)

    def reserved(remat):
        own = dataclasses.replace(config, remat=remat)
        gradient = jax.grad(lambda p, tokens: jnp.square(forward(own, p, tokens)).mean())
        compiled = jax.jit(gradient).lower(params, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    none, full = reserved("none"), reserved("full")
    assert full < 0.6 * none
