"""The rule of where a mesh lies, against every placement of small tori, and that hosts share no rows."""

import itertools
import math

import numpy as np
import pytest
from jax.sharding import Mesh

from deepseek_jax.parallel import MESH_AXES, make_mesh
from deepseek_jax.parallel.placement import TRAFFIC
from deepseek_jax.parallel.shard import batch_parts, own_rows
from deepseek_jax.parallel.torus import busiest_link
from tests.configs import snapshots
from tests.parallel.slices import grid_of, jax_mesh, slice_of


def cost(mesh):
    """TRAFFIC's bytes on the busiest links of a mesh."""
    total = 0.0
    for (axes, is_exchange), weight in TRAFFIC.items():
        if math.prod(mesh.shape[axis] for axis in axes) > 1:
            kind = "all-to-all" if is_exchange else "all-gather"
            total += weight * busiest_link(kind, axes, mesh)
    return total


def every_mesh(topology, sizes):
    """The Meshes of all ways to cut the sides into twos, to give each to an axis, and to order them."""
    grid = grid_of(topology)
    grid = grid.reshape([2] * int(math.log2(grid.size)))
    owners = [axis for axis, size in sizes.items() for _ in range(int(math.log2(size)))]
    for order in set(itertools.permutations(owners)):
        places = sorted(range(grid.ndim), key=lambda n: (MESH_AXES.index(order[n]), n))
        shape = [sizes.get(axis, 1) for axis in MESH_AXES]
        yield Mesh(grid.transpose(places).reshape(shape), MESH_AXES)


@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        ("v5e:4x8", dict(fsdp=2, expert=8, context=2)),
        ("v5e:4x8", dict(fsdp=4, tensor=8)),
        ("v5p:4x4x4", dict(expert=8, context=8)),
        ("v5p:4x4x4", dict(fsdp=2, expert=4, context=8)),
        ("tpu7x:2x2x2", dict(fsdp=4, expert=4)),
    ],
)
def test_no_placement_costs_less(topology, sizes):
    """Oracle: every way to cut the sides into twos and give these to the axes, also ones that no nesting of
    whole parts has, each as a mesh of devices.
    """
    found = cost(make_mesh(data=1, **sizes, devices=slice_of(topology)))
    assert found == pytest.approx(min(cost(mesh) for mesh in every_mesh(topology, sizes)))


@pytest.mark.parametrize("name", snapshots.SLICES)
def test_hosts_hold_the_same_rows_of_a_batch_or_different_ones(name, monkeypatch):
    """Oracle: sets: the rows of 2 x 2 chips of a host, of which batch_share asks that they are equal or
    disjoint, cover a batch.
    """
    sizes = snapshots.config_of(name).get("mesh", {}).to_dict()
    mesh = make_mesh(**sizes, devices=slice_of(snapshots.SLICES[name]))
    rows = 2 * batch_parts(mesh)
    held = set()
    for process in {device.process_index for device in mesh.devices.flat}:
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        held.add(tuple(own_rows(mesh, rows).tolist()))
    assert sorted(itertools.chain(*held)) == list(range(rows))


@pytest.mark.parametrize(
    ("topology", "closes"), [("v5e:2x4", True), ("v5p:2x2x2", True), ("v5e:4x4", False)]
)
def test_an_axis_over_a_small_slice_goes_from_neighbour_to_neighbour(topology, closes):
    """Oracle: by hand: one step of one coordinate between devices, with 2 x n chips to the first one too."""
    mesh = make_mesh(fsdp=-1, data=1, devices=slice_of(topology))
    at = np.array([device.coords for device in mesh.devices.flat])
    steps = np.abs(np.roll(at, -1, 0) - at).sum(1)
    assert (steps[:-1] == 1).all() and (steps[-1] == 1) == closes


@pytest.mark.parametrize("name", snapshots.SLICES)
def test_no_published_mesh_costs_more_than_as_jax_places_it(name):
    """Oracle: jax's mesh_utils, as make_mesh placed meshes before."""
    devices = slice_of(snapshots.SLICES[name])
    mesh = make_mesh(**snapshots.config_of(name).get("mesh", {}).to_dict(), devices=devices)
    assert cost(mesh) <= cost(jax_mesh(mesh.shape, devices)) * (1 + 1e-9)


@pytest.mark.parametrize(
    "sizes",
    [
        dict(fsdp=16, expert=2, tensor=4),
        dict(fsdp=16, expert=4, tensor=2),
        dict(fsdp=32, tensor=4),
        dict(data=16, fsdp=4, context=2),
    ],
)
def test_among_placements_of_one_cost_that_of_jax_is_taken(sizes):
    """Oracle: jax's mesh_utils, whose placements of these cost no more than ours."""
    devices = slice_of("v5p:4x4x8")
    mesh = make_mesh(**dict(data=1) | sizes, devices=devices)
    assert (mesh.devices == jax_mesh(mesh.shape, devices).devices).all()


def test_exchanges_of_experts_and_gathers_of_weights_and_rows_weigh_most():
    """Oracle: by hand, the table by its weights: exchanges of experts, sums of tensor, and gathers of a
    layer's weights and of a row's keys; then a row's exchanges; gradients; and what stages pass on.
    """
    by_weight = {}
    for (axes, is_exchange), weight in TRAFFIC.items():
        by_weight.setdefault(weight, set()).add((*axes, is_exchange))
    most = {("expert", True), ("context", False), ("fsdp", "context", False), ("tensor", False)}
    sums = {("fsdp", "expert", False), ("data", "fsdp", "expert", "context", False)}
    assert by_weight == {10: most, 4: {("context", True)}, 2: sums, 1: {("pipeline", False)}}
