"""The meshes over which an update splits, into how many micro-batches, and what one device then holds."""

import dataclasses
import functools
import math

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from deepseek_jax.costs.program import Program, argument_bytes
from deepseek_jax.parallel.mesh import size_name
from deepseek_jax.parallel.rules import MESH_AXES, RULES, STORED
from deepseek_jax.parallel.shard import axis_parts

# The axes that a search divides the devices among; data is 1, since fsdp splits the rows as it does
SEARCHED = ("fsdp", "expert", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class Shards:
    """Bytes of one device of a mesh: of an update's arguments and what lies beside it, and of its parameters.

    gathered: {axes: bytes} of the weights, in the compute dtype, that gathers over these axes complete.
    """

    arguments: int
    params: int
    gathered: dict[tuple, int]

    @property
    def state(self):
        """What training holds whatever it saves for the backward pass: the arguments, and gradients, which
        are of the parameters' dtype.
        """
        return self.arguments + self.params


def meshes(devices: int, has_experts: bool, slices: int = 1, pipeline: int = 1):
    """[{axis: size}] of every way to divide the devices among SEARCHED. Raises ValueError."""
    if devices % (slices * pipeline):
        raise ValueError(
            f"slices={slices}, pipeline={pipeline} do not divide the {devices} devices; change one of them"
        )
    whole = dict.fromkeys(MESH_AXES, 1) | dict(slice=slices, pipeline=pipeline)
    found = []
    for sizes in _factorisations(devices // (slices * pipeline), len(SEARCHED)):
        mesh = whole | dict(zip(SEARCHED, sizes, strict=True))
        if has_experts or mesh["expert"] == 1:
            found.append(mesh)
    return found


def _factorisations(number, factors):
    """Every tuple of `factors` positive integers with this product."""
    if factors == 1:
        return [(number,)]
    firsts = _divisors(number)
    return [(n, *rest) for n in firsts for rest in _factorisations(number // n, factors - 1)]


def _divisors(number):
    return [n for n in range(1, number + 1) if number % n == 0]


def micro_batches(program: Program, mesh: AbstractMesh):
    """The numbers of micro-batches into which a device's rows split, ascending.

    Raises ValueError, naming the first array and axis of the update's arguments that does not split.
    """
    for path, leaf in jax.tree.leaves_with_path(_on(mesh, program.arguments)):
        for size, entry in zip(leaf.shape, leaf.sharding.spec, strict=False):
            if size % axis_parts(mesh, entry):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                axes = (entry,) if isinstance(entry, str) else entry
                sizes = {size_name(axis): mesh.shape[axis] for axis in axes}
                split = ", ".join(f"{axis}={n}" for axis, n in sizes.items() if n > 1)
                raise ValueError(f"{program.name}: {name} has {size}, not a multiple of {split}")
    sizes = {len(leaf) for leaf in program.arguments[1].values() if leaf.shape}
    rows = max(sizes) // axis_parts(mesh, RULES["batch"])
    return [n for n in _divisors(rows) if all(size % n == 0 for size in sizes)]


def shards(program: Program, mesh: AbstractMesh):
    """The Shards of an update on a mesh. mesh: axes and sizes alone."""
    arguments = _on(mesh, program.arguments)
    state, itemsize = arguments[0], compute_bytes(program)
    gathered = {}
    # The frozen weights of a model with an adapter too
    for leaf in jax.tree.leaves(state.model):
        axes = tuple(a for a in ("fsdp", "context") if _splits(leaf.sharding.spec, a))
        axes += tuple({entry[-1] for entry in leaf.sharding.spec if _is_stored(entry)})
        held = math.prod(leaf.sharding.shard_shape(leaf.shape)) * itemsize
        if axes:
            gathered[axes] = gathered.get(axes, 0) + held * axis_parts(mesh, axes)
    held = argument_bytes(arguments) + sum(argument_bytes(tree) for tree in _beside(mesh, program))
    return Shards(held, argument_bytes(state.params), gathered)


def _on(mesh, arguments):
    """An update's arguments, placed on another mesh. Of the state, rules.STORED holds where sizes split."""
    state, *others = arguments
    state = jax.tree.map(functools.partial(_placed, mesh, may_drop=True), state)
    return state, *jax.tree.map(functools.partial(_placed, mesh), others)


def _beside(mesh, program):
    """The trees of parameters that lie beside an update, placed on another mesh."""
    place = functools.partial(_placed, mesh, may_drop=True)
    return [jax.tree.map(place, held.tree) for held in program.beside]


def _placed(mesh, leaf, may_drop=False):
    spec = leaf.sharding.spec
    if may_drop:
        pairs = zip(leaf.shape, spec, strict=False)
        spec = [
            entry[:-1] if _is_stored(entry) and size % axis_parts(mesh, entry) else entry
            for size, entry in pairs
        ]
    # An array that waits in the host's memory does so on any mesh
    kind = leaf.sharding.memory_kind
    place = NamedSharding(mesh, PartitionSpec(*spec), memory_kind=kind)
    # leaf.update refuses a leaf with an order of axes in memory (adapters.as_read), which no size depends on
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _is_stored(entry):
    """Whether rules.STORED splits the dimension of a weight with this entry."""
    return isinstance(entry, tuple) and entry[-1] in STORED.values()


def compute_bytes(program: Program):
    """Bytes of a number in the model's compute dtype."""
    return 2 if program.model.dtype == "bfloat16" else 4


def _splits(spec, axis):
    return any(axis == entry or (isinstance(entry, tuple) and axis in entry) for entry in spec)
