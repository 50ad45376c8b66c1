"""The scalar head: the token that it reads, and its sharding."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from deepseek_jax.models import hidden_states
from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.models.reward import (
    abstract_head,
    decoder_params,
    predict_rewards,
    reward_config,
    reward_params,
)
from deepseek_jax.parallel import make_mesh
from tests.quick import others_slow
from tests.tiny import tiny_model


def one_device():
    return make_mesh(devices=jax.devices()[:1])


@pytest.mark.parametrize("kind", others_slow(["gqa", "mla_moe", "mtp"], "mla_moe"))
def test_a_reward_is_the_head_of_the_last_real_tokens_state(kind):
    """Oracle: numpy's product with the policy's own hidden states, position by position. The last token has
    the id of the padding, 0, and so has one inside. Tolerance: float32's rounding.
    """
    config, params = tiny_model(kind)
    tokens = np.int32([[5, 0, 7, 0, 0, 0], [9, 8, 7, 6, 5, 4], [3, 0, 0, 0, 0, 0]])
    lengths = (4, 6, 1)
    segment_ids = np.int32([[1] * n + [0] * (6 - n) for n in lengths])
    run = jax.jit(hidden_states, static_argnums=0)
    hidden = np.asarray(run(config, params, tokens, segment_ids=segment_ids)[0])
    model = reward_params(config, params, one_device(), jax.random.key(3))
    predict = jax.jit(predict_rewards, static_argnums=0)
    rewards, _ = predict(reward_config(config), model, tokens, segment_ids)
    head = jax.tree.map(np.asarray, model["head"])
    wanted = [
        row[n - 1] @ head["weight"] + head["bias"] for row, n in zip(hidden, lengths, strict=True)
    ]
    np.testing.assert_allclose(rewards, wanted, rtol=1e-5, atol=1e-6)
    assert len(set(np.round(wanted, 6))) == 3 and rewards.dtype == np.float32


def test_a_reward_model_has_no_output_head_and_no_multi_token_prediction():
    """Oracle: the names of the policy's parameters; what nothing reads would be stored, and decayed."""
    config, params = tiny_model("mtp")
    model = reward_params(config, params, one_device(), jax.random.key(3))
    left_out = params.keys() - model["decoder"].keys()
    assert left_out == {"head", *(name for name in params if name.startswith("mtp_"))}
    assert len(left_out) == 3


def test_padding_and_other_rows_change_no_reward():
    """Oracle: the same rows in another order, other ids in the padding. Tolerance: float32's rounding.
    Only real tokens choose experts.
    """
    config, params = tiny_model("mla_moe")
    config = dataclasses.replace(config, scan_layers=True)
    model = reward_params(config, params, one_device(), jax.random.key(3))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, (4, 12)).astype(np.int32)
    segment_ids = (np.arange(12) < np.array([[3], [12], [7], [1]])).astype(np.int32)
    score = jax.jit(lambda *args: predict_rewards(reward_config(config), model, *args))
    other = np.where(segment_ids, tokens, 49)[::-1]
    (want, routing), (have, _) = score(tokens, segment_ids), score(other, segment_ids[::-1])
    np.testing.assert_allclose(have[::-1], want, rtol=1e-5, atol=1e-6)
    choices = segment_ids.sum() * config.num_experts_per_tok
    np.testing.assert_allclose(routing.load.sum(-1), choices)


def test_a_sharded_reward_model_gives_the_same_rewards():
    """Oracle: one device; and the table of parallel.rules by hand: the head's weight is split as embed is,
    over fsdp. Tolerance: float32, in another order of sums.
    """
    config, params = tiny_model("mla_moe")
    tokens = np.random.default_rng(0).integers(0, 50, (4, 8)).astype(np.int32)
    segment_ids = (np.arange(8) < np.array([[3], [8], [7], [1]])).astype(np.int32)
    mesh = make_mesh(devices=jax.devices()[:4], fsdp=2)
    rewards = []
    for where in (one_device(), mesh):
        model = reward_params(config, params, where, jax.random.key(3))
        with jax.set_mesh(where):
            score = jax.jit(lambda m, *a: predict_rewards(reward_config(config), m, *a)[0])
            rewards.append(np.asarray(score(model, tokens, segment_ids)))
    assert model["head"]["weight"].sharding.spec == PartitionSpec(("fsdp", "context"))
    assert model["head"]["bias"].sharding.spec == PartitionSpec()
    np.testing.assert_allclose(*rewards, rtol=1e-5, atol=1e-6)


def test_the_shapes_of_a_head_are_the_heads():
    """Oracle: the head itself, its shardings too."""
    config, params = tiny_model("gqa")
    mesh = make_mesh(devices=jax.devices()[:4], fsdp=2)
    head = reward_params(config, params, mesh, jax.random.key(0))["head"]
    found = abstract_head(config, mesh)
    for name, leaf in head.items():
        own = found[name]
        assert (own.shape, own.dtype, own.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


def test_an_adapter_stays_with_its_decoder():
    """Oracle: by hand."""
    params = {"embedding": 1, "head": 2, "mtp_0": 3}
    adapted = decoder_params(AdaptedParams(params, {"dense_layers": 4}, 2.0))
    assert adapted == AdaptedParams({"embedding": 1}, {"dense_layers": 4}, 2.0)
