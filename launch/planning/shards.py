"""The meshes and micro-batches that an update splits into, and what one device then holds."""

import dataclasses
import functools
import math

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from deepseek_jax.costs.program import Program, argument_bytes
from deepseek_jax.parallel.mesh import size_name
from deepseek_jax.parallel.rules import MESH_AXES, RULES, STORED
from deepseek_jax.parallel.shard import axis_parts

# A search divides the devices among these axes. data is 1, because fsdp splits the rows in the same
# way
SEARCHED = ("fsdp", "expert", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class Shards:
    """Bytes on one device of a mesh, for an update.

    Attributes:
        arguments: The update's arguments, and what else is in memory during the update.
        params: The parameters that it trains.
        gathered: {mesh axes: bytes of weights, in the compute dtype, after they are gathered over
            these axes}.
    """

    arguments: int
    params: int
    gathered: dict[tuple[str, ...], int]

    @property
    def state(self):
        """What training holds in any case: the arguments, and gradients in the parameters' dtype.

        What it saves for the backward pass comes on top.
        """
        return self.arguments + self.params


def meshes(devices: int, has_experts: bool, slices: int = 1, pipeline: int = 1):
    """Return the meshes for every way to divide the devices among SEARCHED: [{axis: size}].

    Args:
        has_experts: False leaves out meshes with an expert axis above 1.

    Raises:
        ValueError: The slices and the pipeline do not divide the devices.
    """
    if devices % (slices * pipeline):
        raise ValueError(
            f"slices={slices}, pipeline={pipeline} do not divide the {devices} devices; change one of them"
        )
    base_sizes = dict.fromkeys(MESH_AXES, 1) | dict(slice=slices, pipeline=pipeline)
    mesh_sizes = []
    for factors in _factorisations(devices // (slices * pipeline), len(SEARCHED)):
        axis_sizes = base_sizes | dict(zip(SEARCHED, factors, strict=True))
        if has_experts or axis_sizes["expert"] == 1:
            mesh_sizes.append(axis_sizes)
    return mesh_sizes


def _factorisations(number, factors):
    """Return every tuple of `factors` positive integers with this product."""
    if factors == 1:
        return [(number,)]
    firsts = _divisors(number)
    return [
        (n, *other_factors)
        for n in firsts
        for other_factors in _factorisations(number // n, factors - 1)
    ]


def _divisors(number):
    return [n for n in range(1, number + 1) if number % n == 0]


def micro_batches(program: Program, mesh: AbstractMesh):
    """Return the numbers of micro-batches into which a device's rows split, ascending.

    Raises:
        ValueError: An array of the update's arguments does not split over the mesh. The message
            names the first such array and axis.
    """
    for path, leaf in jax.tree.leaves_with_path(_on(mesh, program.arguments)):
        for size, entry in zip(leaf.shape, leaf.sharding.spec, strict=False):
            if size % axis_parts(mesh, entry):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                axes = (entry,) if isinstance(entry, str) else entry
                axis_sizes = {size_name(axis): mesh.shape[axis] for axis in axes}
                split_text = ", ".join(f"{axis}={n}" for axis, n in axis_sizes.items() if n > 1)
                raise ValueError(
                    f"{program.name}: {name} has {size}, not a multiple of {split_text}"
                )
    _, batch, *_ = arguments_of(program)
    row_counts = {len(leaf) for leaf in batch.values() if leaf.shape}
    rows = max(row_counts) // axis_parts(mesh, RULES["batch"])
    return [n for n in _divisors(rows) if all(size % n == 0 for size in row_counts)]


def shards(program: Program, mesh: AbstractMesh):
    """Return the Shards of an update on a mesh.

    Args:
        mesh: Only its axes and sizes are read.
    """
    arguments = _on(mesh, program.arguments)
    state, itemsize = arguments[0], compute_bytes(program)
    gathered: dict[tuple[str, ...], int] = {}
    # With an adapter, this includes the frozen weights
    for leaf in jax.tree.leaves(state.model):
        axes = tuple(a for a in ("fsdp", "context") if _splits(leaf.sharding.spec, a))
        axes += tuple({entry[-1] for entry in leaf.sharding.spec if _is_stored(entry)})
        shard_bytes = math.prod(leaf.sharding.shard_shape(leaf.shape)) * itemsize
        if axes:
            gathered[axes] = gathered.get(axes, 0) + shard_bytes * axis_parts(mesh, axes)
    arguments_bytes = argument_bytes(arguments) + sum(
        argument_bytes(tree) for tree in _beside(mesh, program)
    )
    return Shards(arguments_bytes, argument_bytes(state.params), gathered)


def arguments_of(update: Program) -> tuple:
    """Return the arguments of an update: (TrainState, batch, PRNG key)."""
    # Only other programs need results of earlier ones
    assert not callable(update.arguments)
    return update.arguments


def _on(mesh, arguments):
    """Return an update's arguments, placed on another mesh.

    For the state, rules.STORED applies where sizes split.
    """
    state, *others = arguments
    state = jax.tree.map(functools.partial(_placed, mesh, may_drop=True), state)
    return state, *jax.tree.map(functools.partial(_placed, mesh), others)


def _beside(mesh, program):
    """Return the parameters that are in memory during an update, placed on another mesh.

    Returns:
        A list of trees.
    """
    place_leaf = functools.partial(_placed, mesh, may_drop=True)
    return [jax.tree.map(place_leaf, resident.tree) for resident in program.beside]


def _placed(mesh, leaf, may_drop=False):
    spec = leaf.sharding.spec
    if may_drop:
        pairs = zip(leaf.shape, spec, strict=False)
        spec = [
            entry[:-1] if _is_stored(entry) and size % axis_parts(mesh, entry) else entry
            for size, entry in pairs
        ]
    # An array that waits in the host's memory waits there on any mesh
    memory_kind = leaf.sharding.memory_kind
    sharding = NamedSharding(mesh, PartitionSpec(*spec), memory_kind=memory_kind)
    # Not leaf.update, which refuses a leaf with an order of axes in memory (adapters.as_read). No
    # size depends on that order
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _is_stored(entry):
    """Return whether rules.STORED splits the dimension of a weight that has this entry."""
    return isinstance(entry, tuple) and entry[-1] in STORED.values()


def compute_bytes(program: Program):
    """Return the bytes of a number in the compute dtype of an update's model."""
    assert program.model is not None
    return 2 if program.model.dtype == "bfloat16" else 4


def _splits(spec, axis):
    return any(axis == entry or (isinstance(entry, tuple) and axis in entry) for entry in spec)
