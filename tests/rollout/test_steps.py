"""The compiled parts of a rollout, apart from their use by the engine."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.checkpoint import load_hf, save_hf
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.steps import decode, decoding_weights, embed, empty_slots, rotations
from tests.tiny import tiny_model


def test_embeddings_are_gathered_bit_by_bit_and_never_all_converted():
    """Oracle: numpy's indexing; and the compiled loop, which holds no float32 table to gather from."""
    table = np.random.default_rng(0).normal(size=(50, 8)).astype(jnp.bfloat16)

    def walk(table_vd, rows):
        def body(i, found):
            return found.at[i].set(embed({"embedding": table_vd}, 7 * i[None])[0])

        return jax.lax.fori_loop(0, 5, body, rows)

    walk = jax.jit(walk)
    arguments = jnp.asarray(table), jnp.zeros((5, 8), table.dtype)
    np.testing.assert_array_equal(np.asarray(walk(*arguments)), table[:35:7])
    assert "f32[50,8]" not in walk.lower(*arguments).compile().as_text()


def test_queries_keys_and_values_are_one_product_on_one_cpu():
    """Oracle: the three weights, of which the joined one has every output in order; and the compiled loop,
    which has one such product a layer and none of keys alone. Other tests hold what it decodes to a forward.
    """
    config, params = tiny_model("gqa")
    weights = decoding_weights(config, params)
    attention = weights["layers"][0]["attention"]
    apart = [params["dense_layers"]["attention"][name][0] for name in ("q", "k", "v")]
    rows = np.concatenate([w.reshape(config.hidden_size, -1) for w in apart], axis=1).T
    joined = attention["qkv"].array
    np.testing.assert_array_equal(joined.reshape(rows.shape), rows)
    arguments = weights, rotations(config, 64), empty_slots(config, 4, 24, 40), False
    program = decode.lower(config, Sampling(), (), *arguments).compile().as_text()
    products = re.findall(r"f32\[(\d+),4\]\S* dot\(", program)
    assert products.count(str(len(rows))) == config.num_hidden_layers
    assert str(apart[1][0].size) not in products


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_writes_into_the_caches_where_they_lie(count):
    """Oracle: the compiled loop, which neither copies a cache nor makes another form of it, for one sequence
    as for two.
    """
    config, params = tiny_model("gqa")
    weights = decoding_weights(config, params)
    slots = empty_slots(config, count, 24, 40)
    arguments = weights, rotations(config, 64), slots, False
    program = decode.lower(config, Sampling(), (), *arguments).compile().as_text()
    cache = ",".join(map(str, slots.caches[0]["k"].shape))
    made = re.findall(rf"= f32\[(?:1,)*{cache}\]\S* ([\w-]+)\(", program)
    assert "fusion" in made and not {"copy", "transpose"} & set(made)


def test_devices_that_share_out_heads_share_out_their_caches(tmp_path):
    """Oracle: the compiled loop: of two key heads of four sequences a tensor axis of two gives each device
    one, in what comes in, what goes out and what is made between.
    """
    save_hf(tmp_path, *tiny_model("gqa"))
    mesh = make_mesh(tensor=2, data=4)
    config, params = load_hf(tmp_path, mesh=mesh)
    slots = empty_slots(config, 4, 24, 40)
    assert slots.caches[0]["k"].shape == (2 * 4, 64, 6)
    with jax.set_mesh(mesh):
        weights = decoding_weights(config, params)
        arguments = weights, rotations(config, 64), slots, False
        program = decode.lower(config, Sampling(), (), *arguments).compile().as_text()
    assert {"q", "k", "v"} < weights["layers"][0]["attention"].keys()  # each shared out by itself
    assert "f32[4,64,6]" in program and "f32[8,64,6]" not in program
