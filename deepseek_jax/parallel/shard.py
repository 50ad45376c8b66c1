"""Shardings from the logical names of an array's axes, and checks that sizes split over a mesh."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from deepseek_jax.parallel.mesh import size_name
from deepseek_jax.parallel.rules import RULES, STORED, Entry
from deepseek_jax.trees import PyTree

_TABLE = contextvars.ContextVar("table", default=RULES)


@contextlib.contextmanager
def use_rules(rules: dict[str, Entry]):
    """Trace the block with another table than RULES."""
    token = _TABLE.set(rules)
    try:
        yield
    finally:
        _TABLE.reset(token)


def current_rules() -> dict[str, Entry]:
    """Return the table of axes that is in use."""
    return _TABLE.get()


def partition_spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """Look up logical axis names in the table in use.

    A mesh axis splits an array once: if a second name has the same axis, its dimension stays whole.

    Args:
        names: A name, or None for a whole dimension, for each dimension.

    Raises:
        ValueError: For a name without a row (Linen alone would replicate it in silence).
    """
    rules = current_rules()
    used_axes: set[str] = set()
    entries: list[Entry] = []
    for name in names:
        if name is not None and name not in rules:
            raise ValueError(
                f"logical axis {name!r} has no row in deepseek_jax/parallel/rules.py; "
                f"add one, or use one of {', '.join(sorted(rules))}"
            )
        rule_axes = _mesh_axes(None if name is None else rules[name])
        new_axes = tuple(axis for axis in rule_axes if axis not in used_axes)
        used_axes.update(new_axes)
        entries.append(new_axes[0] if len(new_axes) == 1 else new_axes or None)
    return PartitionSpec(*entries)


def logical_names(boxed: Any) -> Any:
    """Read the axis names of a tree of Flax Partitioned boxes.

    Args:
        boxed: The result of `jax.eval_shape` on a Linen init.

    Returns:
        The same tree, with a tuple of names for each leaf.

    Raises:
        ValueError: For a leaf without names.
    """

    def names(path, leaf):
        if not isinstance(leaf, nn.Partitioned):
            raise ValueError(f"parameter {_path(path)} has no axis names (flax nn.Partitioned)")
        return tuple(leaf.names)

    return jax.tree.map_with_path(names, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def stored(mesh: Mesh | AbstractMesh, shape, names):
    """Return a weight's PartitionSpec between products: `placed`, split further by rules.STORED.

    Args:
        mesh: The mesh.
        shape: The weight's shape.
        names: The logical names of its axes.
    """
    spec, entries = placed(mesh, shape, names), []
    if current_rules() is not RULES:
        return spec
    used_axes = {axis for entry in spec for axis in _mesh_axes(entry)}
    for name, size, entry in zip(names, shape, spec, strict=True):
        axis = STORED.get(name)
        further_entry = (*_mesh_axes(entry), axis)
        if axis and axis not in used_axes and size % axis_parts(mesh, further_entry) == 0:
            used_axes.add(axis)
            entry = further_entry
        entries.append(entry)
    return PartitionSpec(*entries)


def shardings(mesh: Mesh, names: Any, shapes: Any) -> Any:
    """Place every parameter on the mesh.

    Args:
        mesh: The mesh.
        names: A tree of tuples of logical axes.
        shapes: The same tree, of anything that has a .shape.

    Returns:
        The same tree, of NamedSharding.

    Raises:
        ValueError: Naming parameter, axis, size and config field, where a size does not split.
    """

    def place(path, axes, leaf):
        if len(axes) != len(leaf.shape):
            raise ValueError(f"parameter {_path(path)} has axes {axes} but shape {leaf.shape}")
        spec = partition_spec(axes)
        for name, size, entry in zip(axes, leaf.shape, spec, strict=True):
            _check_splits(mesh, f"parameter {_path(path)}: axis {name}", size, entry)
        return NamedSharding(mesh, stored(mesh, leaf.shape, axes))

    return jax.tree.map_with_path(place, names, shapes, is_leaf=lambda x: isinstance(x, tuple))


def init_sharded(mesh: Mesh, init: Callable, rng: jax.Array) -> Any:
    """Run a Linen init so that each parameter is created on the devices that store it.

    Args:
        mesh: The mesh.
        init: A function init(rng) that returns the boxed tree of parameters.
        rng: The key.

    Returns:
        The tree without boxes.

    Raises:
        ValueError: As `shardings`, where a size does not split.
    """
    # Trace once, and check shapes first: a size that does not split is refused before anything compiles
    jaxpr, boxed = jax.make_jaxpr(init, return_shape=True)(rng)
    shapes = nn.unbox(boxed)
    places = shardings(mesh, logical_names(boxed), shapes)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    # The program runs once: XLA's CPU compiler would spend seconds on code that runs for milliseconds
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    places = jax.tree.leaves(places)
    make = jax.jit(jaxpr_as_fun(jaxpr), out_shardings=places, compiler_options=options)
    return jax.tree.unflatten(jax.tree.structure(shapes), make(rng))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits a batch's rows, for arrays of rank one and up.

    Axes other than the rows stay whole.
    """
    return NamedSharding(mesh, partition_spec(("batch",)))


def batch_parts(mesh: Mesh) -> int:
    """Return the number of parts that a batch's rows split into; it must divide their number."""
    return axis_parts(mesh, batch_sharding(mesh).spec[0])


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Return which share of a batch's rows this process provides: (its index, number of shares).

    Two processes provide the same share if their devices have the same rows (two stages of a
    pipeline, for example).

    Raises:
        ValueError: If shares overlap without being equal.
    """
    parts_by_process = _parts_held(mesh)
    # A set, because processes with the same rows provide the same share
    shares = sorted(set(parts_by_process.values()))
    # Shares that overlap without being equal would load some rows twice
    if sum(map(len, shares)) != batch_parts(mesh):
        raise ValueError(
            "the processes hold overlapping parts of a batch's rows; order the mesh so that the devices "
            "of one process make up whole parts of slices x data x fsdp x expert"
        )
    return shares.index(parts_by_process[jax.process_index()]), len(shares)


def own_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Return the numbers of the batch rows on this process's devices.

    Args:
        mesh: The mesh.
        rows: The number of rows of the whole batch.

    Returns:
        int64[n], rising. The rows are not always neighbours: a host's chips may lie apart along
        several axes of the mesh.

    Raises:
        ValueError: Naming the config field, where the rows do not split evenly.
    """
    _check_splits(mesh, "a batch's rows: axis batch", rows, batch_sharding(mesh).spec[0])
    rows_by_part = np.arange(rows).reshape(batch_parts(mesh), -1)
    return rows_by_part[list(_parts_held(mesh)[jax.process_index()])].ravel()


def _parts_held(mesh):
    """Return {process: the parts of a batch that its devices have}, tuples of rising numbers."""
    sharding, num_parts = batch_sharding(mesh), batch_parts(mesh)
    slices: Mapping[jax.Device, tuple[slice, ...]] = sharding.devices_indices_map((num_parts,))
    numbers_by_process: dict[int, set[int]] = {}
    for device, (part_slice,) in slices.items():
        numbers_by_process.setdefault(device.process_index, set()).add(part_slice.start or 0)
    return {process: tuple(sorted(numbers)) for process, numbers in numbers_by_process.items()}


def put_batch(mesh: Mesh, batch: dict) -> dict:
    """Move a batch of numpy arrays onto the mesh: rows split, scalars everywhere.

    Every process passes its share of the rows (see batch_share) and gets the global array. Jax
    arrays pass through, because they are on the mesh already.

    Args:
        mesh: The mesh.
        batch: A dict of arrays. Scalars are totals of the global batch and must be the same on all
            processes.

    Raises:
        ValueError: Naming key and config field, where the rows do not split evenly.
    """
    row_sharding, replicated = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    _, num_shares = batch_share(mesh)

    def put(name, value):
        if isinstance(value, jax.Array):
            return value
        if not value.shape:
            return jax.make_array_from_process_local_data(replicated, value)
        num_rows = value.shape[0] * num_shares
        _check_splits(mesh, f"batch[{name!r}]: axis batch", num_rows, row_sharding.spec[0])
        return jax.make_array_from_process_local_data(row_sharding, value)

    return {name: put(name, value) for name, value in batch.items()}


def put_share(mesh: Mesh, batch: dict) -> dict:
    """Move a batch onto the mesh that every process has whole, see put_batch."""
    # Scalars are totals of the global batch, the same on every process
    own_batch = {
        name: array[own_rows(mesh, len(array))] if array.ndim else array
        for name, array in batch.items()
    }
    return put_batch(mesh, own_batch)


def on_device(tree: PyTree) -> PyTree:
    """Move the arrays of a tree that wait in the host's memory to the device, in jit or outside."""

    def move(leaf):
        is_on_host = jax.typeof(leaf).memory_space == jax.memory.Space.Host
        return jax.device_put(leaf, jax.memory.Space.Device) if is_on_host else leaf

    return jax.tree.map(move, tree)


def constrain(array: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """Pin a traced array to the sharding of its logical axis names, on the mesh of `jax.set_mesh`.

    A dimension that does not split over its mesh axes stays whole. Without a mesh the array is
    returned unchanged.
    """
    mesh = current_mesh()
    if mesh is None:
        return array
    spec = placed(mesh, array.shape, names)
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))


def current_mesh() -> AbstractMesh | None:
    """Return the mesh of `jax.set_mesh`; None without one, and for a mesh of a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def placed(mesh: Mesh | AbstractMesh, shape, names):
    """Return the PartitionSpec of an array; dimensions that do not split evenly stay whole.

    Args:
        mesh: The mesh.
        shape: The array's shape.
        names: The logical names of its axes; they may leave the last dimensions out.
    """
    # strict=False: names may leave the last dimensions out
    pairs = zip(shape, partition_spec(names), strict=False)
    return PartitionSpec(
        *(entry if size % axis_parts(mesh, entry) == 0 else None for size, entry in pairs)
    )


def check_splits(mesh: Mesh | AbstractMesh, what: str, size: int, name: str):
    """Raise ValueError, naming the config field, if `size` does not split over a logical axis.

    Args:
        mesh: The mesh.
        what: The array and its axis, as the message names them.
        size: The size of the dimension.
        name: The logical axis.
    """
    _check_splits(mesh, what, size, partition_spec((name,))[0])


def check_batch(
    mesh: Mesh,
    rows: int,
    sequence_length: int,
    *,
    micro_batches: int = 1,
    pipeline_micro_batches: int | None = None,
):
    """Raise ValueError, naming the config fields, unless a batch's parts split over the mesh.

    The gradient of rows that do not split is right (tests/parallel/test_uneven.py) but slow: every
    device does the work of several.

    Args:
        mesh: The mesh.
        rows: The rows of the global batch.
        sequence_length: The tokens of a row.
        micro_batches: The parts into which an update cuts the rows.
        pipeline_micro_batches: ModelConfig's field: the parts into which a mesh with a pipeline
            cuts each of these parts again. Default: the number of stages.
    """
    # {field: number of parts}, for everything that divides the rows
    stages = mesh.shape["pipeline"]
    parts_by_field = {"micro_batches": micro_batches}
    if stages > 1:
        parts_by_field["pipeline_micro_batches"] = pipeline_micro_batches or stages
    parts_by_field |= {_axis(axis): mesh.shape[axis] for axis in _mesh_axes(RULES["batch"])}
    parts_by_field = {
        field: num_parts for field, num_parts in parts_by_field.items() if num_parts > 1
    }
    num_parts = math.prod(parts_by_field.values())
    if rows % num_parts:
        factors = " x ".join(
            f"{field}={field_parts}" for field, field_parts in parts_by_field.items()
        )
        raise ValueError(
            f"a batch of {rows} rows does not split into {factors}; set the number of rows to a multiple of "
            f"{num_parts}, or lower one of these"
        )
    check_splits(mesh, "sequence_length", sequence_length, "seq")


def _check_splits(mesh, what, size, entry):
    if size % axis_parts(mesh, entry):
        split_axes = [axis for axis in _mesh_axes(entry) if mesh.shape[axis] > 1]
        sizes_text = ", ".join(f"{_axis(axis)}={mesh.shape[axis]}" for axis in split_axes)
        subject = "their product" if len(split_axes) > 1 else _axis(split_axes[0])
        raise ValueError(
            f"{what}={size} does not split over {sizes_text}; set {subject} to a divisor of {size}"
        )


def _axis(axis):
    """Return the name of a mesh axis in messages: its config field without "config."."""
    return f"mesh.{size_name(axis)}"


def axis_parts(mesh: Mesh | AbstractMesh, entry: Entry) -> int:
    """Return the number of parts into which an entry of a PartitionSpec splits its dimension."""
    return math.prod(mesh.shape[axis] for axis in _mesh_axes(entry))


def _mesh_axes(entry):
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _path(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")
