"""The bytes of an update on a mesh, against the programs that a recipe builds on real meshes."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from configs import models
from deepseek_jax.checkpoint.tree import by_path
from deepseek_jax.costs.program import ResidentArrays, argument_bytes, beside
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.mesh import size_name
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.pretrain import run as pretrain
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.settings import build
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
    (program,) = driver.plan(pretrain, build(PretrainSettings, config, "config"), mesh)
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
    """Oracle: argument_bytes of the update that the recipe builds on such a mesh of devices; gradients take
    as many as the parameters.
    """
    real = update(**sizes)
    found = shards(on_one_device(), abstract(**sizes))
    assert found.arguments == argument_bytes(real.arguments)
    assert found.state == found.arguments + argument_bytes(real.arguments[0].params)


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
    (beside_params,) = beside(
        [program], ResidentArrays("the reference", program.arguments[0].params)
    )
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
