"""Programs by their shapes: the bytes of their arguments, and the operations that they need."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.flops import forward_flops, useful_flops
from deepseek_jax.costs.program import (
    Program,
    ResidentArrays,
    argument_bytes,
    beside,
    everywhere,
    update_program,
)
from deepseek_jax.data.batches import abstract_rows
from deepseek_jax.parallel import make_mesh, put_batch
from deepseek_jax.training.state import TrainState
from tests.tiny import CONFIGS as TINY
from tests.tiny import MTP

MESH = make_mesh(data=1, fsdp=2, expert=2, tensor=2)


def test_the_bytes_of_arguments_are_those_of_a_devices_shards():
    """Oracle: the buffers of arrays put on the mesh; static arguments have none."""
    config = TINY["mla_moe"]
    shapes = abstract_tree(config, MESH)
    arrays = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), shapes)
    rows = {"tokens": np.zeros((8, 16), np.int32), "normalizer": np.float32(1)}
    arrays = arrays, put_batch(MESH, rows)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(arrays))
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=arrays[1][name].sharding)
        for name, x in rows.items()
    }
    assert argument_bytes((config, shapes, batch, 7)) == held
    # By hand: [8 6] of bfloat16 in two parts of four rows
    place = NamedSharding(MESH, PartitionSpec("fsdp"))
    assert argument_bytes(jax.ShapeDtypeStruct((8, 6), "bfloat16", sharding=place)) == 2 * 4 * 6
    assert argument_bytes(everywhere(MESH, (3, 5), "int32")) == 4 * 3 * 5


def test_what_waits_in_the_hosts_memory_has_no_bytes_on_a_device():
    """Oracle: by hand: of two arrays of [8 6] float32 in halves one is on the device."""
    place = NamedSharding(MESH, PartitionSpec("fsdp"))
    there = jax.ShapeDtypeStruct((8, 6), "float32", sharding=place)
    waiting = there.update(sharding=place.with_memory_kind("pinned_host"))
    assert argument_bytes((there, waiting)) == 4 * 4 * 6


def test_what_lies_beside_programs_adds_up():
    """Oracle: by hand: [8 6] of float32, and of bfloat16 in halves; programs keep what they had."""
    fields = dict(function=None, arguments=(), mesh=MESH, tokens=0, flops=0.0, sizes="")
    first = ResidentArrays("the reference", everywhere(MESH, (8, 6), "float32"))
    half = NamedSharding(MESH, PartitionSpec("fsdp"))
    second = ResidentArrays("it", {"a": jax.ShapeDtypeStruct((8, 6), "bfloat16", sharding=half)})
    alone, both = beside([Program("a", **fields), Program("b", beside=(first,), **fields)], second)
    assert alone.beside == (second,) and alone.beside_bytes == 2 * 4 * 6
    assert both.beside == (first, second) and both.beside_bytes == 4 * 8 * 6 + 2 * 4 * 6


def test_a_token_of_grouped_attention_needs_what_its_weights_say():
    """Oracle: by hand: two operations for each weight of q, k, v, o, the gated MLP and the tied head, and for
    each number of a key and of a value of 4 heads, 6 wide, in 2 layers.
    """
    layer = 24 * 24 + 2 * 24 * 12 + 24 * 24 + 3 * 24 * 32
    by_hand = 2 * (2 * layer + 50 * 24) + 2 * 10 * 2 * 4 * (6 + 6)
    assert forward_flops(TINY["gqa"], 10) == by_hand


def test_a_token_of_latent_attention_needs_what_its_weights_say():
    """Oracle: by hand: q and k, v through their latents, o, a dense MLP, and of 8 experts 2 and the shared
    one; heads 8 + 4 wide, values 6.
    """
    attention = 24 * 12 + 12 * 4 * (8 + 4) + 24 * (10 + 4) + 10 * 4 * (8 + 6) + 4 * 6 * 24
    mlp = 3 * 24 * 32 + (24 * 8 + 3 * 3 * 24 * 16)
    by_hand = 2 * (2 * attention + mlp + 50 * 24) + 2 * 10 * 2 * 4 * (8 + 4 + 6)
    assert forward_flops(TINY["mla_moe"], 10) == by_hand


@pytest.mark.parametrize("config", [*TINY.values(), MTP])
def test_an_update_needs_three_forward_passes(config):
    """Oracle: by hand: a product forward and two backward; a query of a row of 64 sees 32 keys on average."""
    own = 3 * forward_flops(config, 32)
    assert useful_flops(config, 64, trains_mtp=False) == own
    depths = config.num_nextn_predict_layers
    assert useful_flops(config, 64, trains_mtp=True) == 3 * forward_flops(config, 32, depths)
    assert (useful_flops(config, 64, trains_mtp=True) > own) == bool(depths)


@pytest.mark.parametrize("scalars, depths", [(("normalizer",), 0), (("mtp_weight",), 2)])
def test_an_updates_work_is_that_of_its_rows(scalars, depths):
    """Oracle: by hand: rows times length; prediction modules where a weight trains them."""
    state = TrainState(everywhere(MESH, (), "int32"), {}, None)
    batch = abstract_rows(MESH, 16, 32, scalars=scalars)
    program = update_program("update", None, state, batch, config=MTP, mesh=MESH)
    assert program.tokens == 16 * 32 and program.sizes == "16 rows x 32"
    assert program.flops == 16 * 32 * 3 * forward_flops(MTP, 16, depths)
    rng = program.arguments[2]
    assert rng.dtype == jax.random.key(0).dtype and rng.sharding.is_fully_replicated


def test_a_program_gets_the_results_that_it_names():
    """Oracle: by hand, in the order of needs; one without needs has its arguments at once."""
    fields = dict(function=None, mesh=MESH, tokens=0, flops=0.0, sizes="")
    both = Program("c", arguments=lambda a, b: (b, a, 3), needs=("a", "b"), **fields)
    assert both.arguments_after({"b": 2, "a": 1}) == (2, 1, 3)
    with pytest.raises(KeyError, match="'b'"):
        both.arguments_after({"a": 1})
    assert dataclasses.replace(both, arguments=(5,), needs=()).arguments_after({}) == (5,)
