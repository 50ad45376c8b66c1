"""However an update is cut up and spread out, it is the same update: V3's whole block, with balance and
multi-token losses and the bias update, in float32 on eight devices, against one device's plain path.
"""

import functools
import itertools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, init_params
from deepseek_jax.parallel import init_sharded, make_mesh, put_batch
from deepseek_jax.training.state import TrainState, state_shardings
from deepseek_jax.training.step import make_train_step
from tests.tiny import random_leaves

V3 = dict(
    model_type="deepseek_v3",
    vocab_size=32,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=8,
    q_lora_rank=12,
    kv_lora_rank=10,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    first_k_dense_replace=1,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    num_nextn_predict_layers=1,
    max_position_embeddings=64,
)
MESHES = {
    "one device": None,
    "data": dict(data=8),
    "fsdp": dict(fsdp=8),
    "expert": dict(expert=8),
    "tensor": dict(tensor=8),
    "context": dict(context=8),
    "pipeline": dict(pipeline=2, data=4),
    "fsdp, expert, tensor": dict(fsdp=2, expert=2, tensor=2),
    "slices, pipeline, expert, context": dict(slices=1, pipeline=2, data=1, expert=2, context=2),
}
PLAIN = dict(mesh="one device", micro_batches=1, packed=True, remat="none", scan_layers=False)
FACTORS = dict(
    mesh=list(MESHES),
    micro_batches=[1, 2, 4],
    packed=[True, False],
    remat=["none", "full"],
    scan_layers=[False, True],
)
SPEED = 0.01
GRADIENTS = optax.chain(
    optax.trace(decay=0.0), optax.set_to_zero()
)  # its state is what it was given


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


def one_update(mesh, micro_batches, packed, remat, scan_layers):
    """(metrics, gradients, parameters after) as numpy."""
    config = ModelConfig(**V3, remat=remat, scan_layers=scan_layers)
    mesh = make_mesh(**(MESHES[mesh] or dict(data=1, devices=jax.devices()[:1])))

    def loss_fn(params, batch, rng):
        return next_token_loss(config, params, batch, balance_weight=0.01, mtp_weight=0.3)

    with jax.set_mesh(mesh):
        init = functools.partial(init_params, config)
        params, places = init_sharded(
            mesh, lambda rng: random_leaves(init(rng), rng), jax.random.key(0)
        )
        placed = state_shardings(mesh, places, params, GRADIENTS)
        state = jax.jit(functools.partial(TrainState.create, tx=GRADIENTS), out_shardings=placed)(
            params
        )
        step = make_train_step(
            loss_fn,
            GRADIENTS,
            micro_batches=micro_batches,
            bias_update_speed=optax.constant_schedule(SPEED),
        )
        step = jax.jit(step, out_shardings=(placed, None))
        state, metrics = step(state, put_batch(mesh, make_batch(packed)), jax.random.key(0))
        return jax.device_get((metrics, state.opt_state[0].trace, state.params))


@functools.cache
def plain():
    return one_update(**PLAIN)


def check(how):
    metrics, gradients, params = one_update(**how)
    wanted_metrics, wanted_gradients, wanted_params = plain()
    assert metrics.keys() == wanted_metrics.keys()
    for name, value in wanted_metrics.items():
        exact = name.startswith(("max_vio", "load_entropy"))  # counts are whole numbers
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6 if exact else 1e-5, err_msg=name)

    def compare(path, ours, theirs):
        error = np.abs(ours - theirs).max()
        assert error <= 1e-5 * np.abs(theirs).max(), (jax.tree_util.keystr(path), error)

    jax.tree.map_with_path(compare, gradients, wanted_gradients)
    jax.tree.map(np.testing.assert_array_equal, params, wanted_params)  # the biases have moved


def combinations():
    for values in itertools.product(*FACTORS.values()):
        yield dict(zip(FACTORS, values, strict=True))


def chosen():
    """Each value of each factor alone, and for every mesh one combination of all the others."""
    for name, values in FACTORS.items():
        yield from (PLAIN | {name: value} for value in values if value != PLAIN[name])
    for index, mesh in enumerate(MESHES):
        micro_batches = (2, 4)[index % 2]
        yield dict(
            mesh=mesh, micro_batches=micro_batches, packed=False, remat="full", scan_layers=True
        )


def name_of(how):
    return ", ".join(f"{name} {value}" for name, value in how.items() if value != PLAIN[name])


@pytest.mark.parametrize("how", list(chosen()), ids=name_of)
def test_the_update_is_that_of_one_device(how):
    """Oracle: the plain path. 1e-5 of each tensor's largest: float32 sums in another order; counts and
    biases exactly.
    """
    check(how)


@pytest.mark.slow
@pytest.mark.parametrize("how", list(combinations()), ids=name_of)
def test_every_combination_gives_the_update_of_one_device(how):
    """Oracle: the plain path, as above."""
    check(how)


def test_the_plain_update_moves_every_bias_and_feeds_every_parameter():
    """Oracle: invariants of the reference itself: it would prove nothing with idle parts."""
    _, gradients, params = plain()
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert (path[-1].key == "router_bias") != bool(np.abs(leaf).max() > 0), path
    init = functools.partial(init_params, ModelConfig(**V3))
    before = nn.unbox(jax.jit(lambda rng: random_leaves(init(rng), rng))(jax.random.key(0)))
    for stack in ("moe_layers", "mtp_0"):
        pair = [
            tree[stack].get("block", tree[stack])["ffn"]["router_bias"] for tree in (params, before)
        ]
        assert np.abs(pair[0] - pair[1]).max() > SPEED / 2
