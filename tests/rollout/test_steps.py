"""The compiled parts of a rollout, apart from their use by the engine."""

import re

import jax
import pytest

from deepseek_jax.checkpoint import load_hf, save_hf
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout.decode import decode, decoding_weights, empty_slots, rotations
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding
from tests.tiny import tiny_model


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_writes_into_the_caches_where_they_lie(count):
    """Oracle: the compiled loop: it neither copies nor transposes a cache, for one sequence and for two."""
    config, params = tiny_model("gqa")
    weights = decoding_weights(Decoding(config), params)
    slots = empty_slots(Decoding(config), count, 24, 40, 40)
    arguments = weights, rotations(config, 64), slots, 8
    program = decode.lower(Decoding(config), Sampling(), (), *arguments).compile().as_text()
    cache = ",".join(map(str, slots.caches[0]["k"].shape))
    made = re.findall(rf"= f32\[(?:1,)*{cache}\]\S* ([\w-]+)\(", program)
    assert "fusion" in made and not {"copy", "transpose"} & set(made)


@pytest.mark.slow
def test_each_device_has_the_caches_of_its_own_slots(tmp_path):
    """Oracle: the compiled loop: of eight slots with two key heads each device has one slot's caches, in the
    inputs, the outputs and everything between, and on a tensor axis of two half of the query heads.
    """
    save_hf(tmp_path, *tiny_model("gqa"))
    mesh = make_mesh(tensor=2, data=4)
    config, params = load_hf(tmp_path, mesh=mesh)
    with jax.set_mesh(mesh):
        slots = empty_slots(Decoding(config), 8, 24, 40, 40)
        weights = decoding_weights(Decoding(config), params)
        arguments = weights, rotations(config, 64), slots, 8
        program = decode.lower(Decoding(config), Sampling(), (), *arguments).compile().as_text()
    whole, own = slots.caches[0]["k"].shape, (2, 64, 6)
    assert whole == (8 * 2, 64, 6)
    assert "f32[2,64,6]" in program and "f32[16,64,6]" not in program
    q = weights["layers"][0]["attention"]["q"]
    assert q.sharding.shard_shape(q.shape)[1] == config.num_attention_heads // 2
    assert slots.caches[0]["k"].sharding.shard_shape(whole) == own
