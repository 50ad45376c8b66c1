"""Layouts of an update and their bytes, against the programs that a recipe builds on real meshes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from configs import models
from deepseek_jax.checkpoint.tree import by_path
from deepseek_jax.costs.chips import CHIPS
from deepseek_jax.costs.layouts import Layout
from deepseek_jax.costs.program import Held, argument_bytes, beside
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.mesh import size_name
from deepseek_jax.recipes.pretrain.programs import programs
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.settings import build
from launch.planning.estimate import peak_bytes
from launch.planning.ranking import rank
from launch.planning.shards import meshes, micro_batches, shards

ROWS, LENGTH = 24, 128
LAYERS, HIDDEN = 4, 64
WHOLE = dict(slice=1, pipeline=1, data=1, fsdp=1, expert=1, context=1, tensor=1)


def update(moment_memory="device", **mesh):
    """The update of a small experiment on so many of conftest's devices; on one without sizes."""
    sizes = dict(num_hidden_layers=LAYERS, hidden_size=HIDDEN, scan_layers=True, dtype="bfloat16")
    stage = dict(sequence_length=LENGTH, batch_size=ROWS, num_steps=1, bias_update_speed=0.0)
    stage["optimizer"] = dict(learning_rate=1e-3, moment_memory=moment_memory)
    config = ConfigDict(dict(recipe="pretrain", seed=0, data=dict(sources=("arithmetic",))))
    config.model, config.stages = models.deepseek_v3_tiny() | sizes, dict(only=stage)
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    axes = dict(data=1) | {size_name(axis): size for axis, size in mesh.items()}
    mesh = make_mesh(**axes, devices=devices)
    (program,) = programs(build(PretrainSettings, config, "config"), mesh)
    return program


@functools.cache
def on_one_device():
    return update()


def abstract(**sizes):
    return AbstractMesh(tuple((WHOLE | sizes).values()), tuple(WHOLE))


def test_every_way_to_divide_the_devices_is_a_mesh():
    """Oracle: by hand: four factors of 4 are ten tuples, three of them, without experts, six; those of a
    pipeline divide what it leaves.
    """
    assert len(meshes(4, has_experts=True)) == 10
    without = meshes(4, has_experts=False)
    assert len(without) == 6 and all(mesh["expert"] == 1 for mesh in without)
    for mesh in meshes(8, has_experts=True, slices=2, pipeline=2):
        assert np.prod(list(mesh.values())) == 8 and mesh["slice"] == mesh["pipeline"] == 2
    with pytest.raises(ValueError, match="slices=3, pipeline=1 do not divide the 8 devices"):
        meshes(8, has_experts=True, slices=3)


@pytest.mark.parametrize("sizes", [dict(fsdp=4), dict(fsdp=2, expert=4), dict(context=2, tensor=4)])
def test_the_bytes_of_the_arguments_are_those_of_the_recipes_program(sizes):
    """Oracle: argument_bytes of the update that the recipe builds on such a mesh of devices."""
    real = update(**sizes)
    found = shards(on_one_device(), abstract(**sizes))
    assert found.arguments == argument_bytes(real.arguments)
    assert found.params == argument_bytes(real.arguments[0].params)


def test_what_waits_in_the_hosts_memory_waits_there_on_every_mesh():
    """Oracle: argument_bytes of the update that the recipe builds there: less by two float32 moments of each
    parameter than with the moments on the devices. The biases that balance routers have none.
    """
    sizes = dict(fsdp=2, expert=4)
    real, with_moments = update("host", **sizes), update(**sizes)
    found = shards(update("host"), abstract(**sizes))
    assert found.arguments == argument_bytes(real.arguments)
    params = by_path(real.arguments[0].params).items()
    moments = 2 * argument_bytes([x for path, x in params if not path.endswith("router_bias")])
    assert found.arguments == argument_bytes(with_moments.arguments) - moments


def test_what_lies_beside_an_update_is_there_on_every_mesh():
    """Oracle: argument_bytes of the parameters that the recipe places on such a mesh."""
    program, sizes = on_one_device(), dict(fsdp=2, expert=4)
    (beside_params,) = beside([program], Held("the reference", program.arguments[0].params))
    real = update(**sizes)
    found = shards(beside_params, abstract(**sizes)).arguments
    assert found == argument_bytes((real.arguments, real.arguments[0].params))


def test_the_weights_of_a_gather_are_whole_but_for_the_other_axes():
    """Oracle: by hand: two bytes for each weight that fsdp splits, or expert beside experts; half of those of
    the experts themselves.
    """
    program, totals = on_one_device(), {}
    for leaf in jax.tree.leaves(program.arguments[0].params):
        entries = tuple(leaf.sharding.spec)
        key = [axis for axis in ("fsdp", "context") if axis in jax.tree.leaves(entries)]
        key += ["expert"] * (("tensor", "expert") in entries)
        if key:
            of_experts = "expert" in entries
            totals[tuple(key)] = totals.get(tuple(key), 0) + 2 * leaf.size // (1 + of_experts)
    assert len(totals) == 4
    found = shards(program, abstract(fsdp=2, expert=2))
    assert found.gathered == totals and all(totals.values())


def test_rows_split_into_what_divides_a_devices_share():
    """Oracle: by hand: of 24 rows a device of 4 has 6, which 1, 2, 3 and 6 divide."""
    assert micro_batches(on_one_device(), abstract(fsdp=2, expert=2)) == [1, 2, 3, 6]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (dict(tensor=16), "multiple of tensor=16"),
        (dict(expert=16), "multiple of expert=16"),
        (dict(fsdp=16), "24, not a multiple of fsdp=16"),
    ],
)
def test_what_does_not_split_is_named(sizes, words):
    """Oracle: by hand: 8 heads and 8 experts do not split over 16, nor do 24 rows."""
    with pytest.raises(ValueError, match=words):
        micro_batches(on_one_device(), abstract(**sizes))


def test_full_remat_saves_the_input_of_each_layer():
    """Oracle: by hand: each layer more adds hidden_size numbers of two bytes for each token at once; without
    remat it adds more.
    """
    program = on_one_device()
    deeper = dataclasses.replace(program.model, num_hidden_layers=LAYERS + 3)
    held, layout = shards(program, abstract()), Layout(WHOLE, 2, "full")
    added = [
        peak_bytes(dataclasses.replace(program, model=deeper), held, one)
        - peak_bytes(program, held, one)
        for one in (layout, dataclasses.replace(layout, remat="none"))
    ]
    assert added[0] == 3 * (ROWS // 2 * LENGTH) * HIDDEN * 2 < added[1]


def ranked(hbm_bytes, sizes):
    """rank of the update on the meshes of these sizes, for a v5e with so much memory."""
    chip = dataclasses.replace(CHIPS["v5e"], hbm_bytes=hbm_bytes)

    def mesh_of(axes):
        devices = jax.devices()[: int(np.prod(list(axes.values())))]
        return make_mesh(**{size_name(a): n for a, n in axes.items()}, devices=devices)

    return rank([on_one_device()], [WHOLE | each for each in sizes], mesh_of, chip)


def test_a_batch_that_needs_micro_batches_gets_them():
    """Oracle: by hand: with room for all, one micro-batch, whose weights are gathered once, and without
    recomputation; with less, what exceeds the memory comes after all that fits.
    """
    found, dropped = ranked(2**40, [dict(fsdp=4)])
    assert not dropped and (found[0].layout.micro_batches, found[0].layout.remat) == (1, "none")
    largest = min(one.peak for one in found if one.layout.micro_batches == 1)
    found, _ = ranked(int(largest) - 1, [dict(fsdp=4)])
    assert found[0].layout.micro_batches > 1 and found[0].peak < largest
    fit = [one.peak < largest for one in found]
    assert fit == sorted(fit, reverse=True) and not all(fit)


def test_a_mesh_that_does_not_split_is_dropped_with_its_reason():
    """Oracle: by hand: 24 rows split over 8 devices, 8 experts not over 5; 1000 bytes hold nothing."""
    found, dropped = ranked(2**40, [dict(fsdp=8), dict(expert=5)])
    assert {one.layout.mesh["fsdp"] for one in found} == {8}
    (reason,) = dropped
    assert reason.endswith("has 8, not a multiple of expert=5")
    found, dropped = ranked(1000, [dict(fsdp=8)])
    assert not found and dropped == ["fsdp=8: the arguments alone exceed a device's memory"]


def test_full_remat_costs_a_third_more_and_no_remat_nothing():
    """Oracle: by hand: forward is a third of forward and backward; one device has no collectives."""
    found, _ = ranked(2**40, [dict()])
    seconds = {one.layout.remat: one.seconds for one in found if one.layout.micro_batches == 1}
    needed = on_one_device().flops / CHIPS["v5e"].flops_per_second
    np.testing.assert_allclose(seconds["none"], needed)
    np.testing.assert_allclose(seconds["full"], needed * 4 / 3, rtol=0.01)
    assert seconds["none"] < seconds["selective"] < seconds["full"]
    assert seconds["none"] < seconds["dots"] < seconds["full"]


@pytest.mark.parametrize("count", [1, 2])
def test_collectives_add_their_bytes_over_the_link(count):
    """Oracle: by hand, for 4 devices that a switch joins: each sends three quarters of the weights, three
    times for each micro-batch; or of the weights that expert splits, and of the rows of its tokens, of 2
    experts each, there and back, forward and backward, through each MoE layer.
    """
    program, chip = on_one_device(), CHIPS["v5e"]
    needed = program.flops / 4 / chip.flops_per_second
    found, _ = ranked(2**40, [dict(fsdp=4), dict(expert=4)])
    seconds = {
        max(one.layout.mesh, key=one.layout.mesh.get): one.seconds - needed
        for one in found
        if (one.layout.micro_batches, one.layout.remat) == (count, "none")
    }
    gathered = shards(program, abstract(fsdp=4)).gathered
    weights = sum(whole for axes, whole in gathered.items() if "fsdp" in axes)
    np.testing.assert_allclose(seconds["fsdp"], 3 * count * weights * 3 / 4 / chip.link)
    weights = sum(whole for axes, whole in gathered.items() if "expert" in axes)
    moe_layers, tokens = LAYERS - 1, ROWS * LENGTH // 4
    sent = 2 * 2 * moe_layers * tokens * 2 * HIDDEN * 2 * 3 / 4
    sent += 3 * count * weights * 3 / 4
    np.testing.assert_allclose(seconds["expert"], sent / chip.link)
