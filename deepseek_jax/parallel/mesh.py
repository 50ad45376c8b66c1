"""Build the Mesh over all devices from the axis sizes in the config."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from deepseek_jax.parallel.placement import place
from deepseek_jax.parallel.processes import say
from deepseek_jax.parallel.rules import MESH_AXES
from deepseek_jax.parallel.torus import torus_of


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The block config.mesh: the size of each axis, see make_mesh.

    One size may be -1: that axis takes the devices that the other axes leave.
    """

    slices: int = 1
    pipeline: int = 1
    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1


def make_mesh(
    *,
    slices: int = 1,
    pipeline: int = 1,
    data: int = -1,
    fsdp: int = 1,
    expert: int = 1,
    context: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    exchange: Callable[[int], float] | None = None,
) -> Mesh:
    """Arrange devices along MESH_AXES, with the given size for each axis.

    One size may be -1: that axis takes the devices that the other axes leave. On the torus of a
    slice, parallel.placement decides where each axis lies; other devices are taken in jax's order.
    Axes are Auto: the compiler places whatever no sharding names.

    Args:
        slices: Size of the axis "slice": the number of groups of devices that only a data-centre
            network joins. These are TPU slices or, where devices have no slice index, processes.
        devices: Default: all devices of all processes.
        exchange: A function from the number of devices on the axis expert to the argument
            `exchange` of placement.place. None for 1.0.

    Raises:
        ValueError: Unless the product of the sizes is the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = (slices, pipeline, data, fsdp, expert, context, tensor)
    sizes = _filled(dict(zip(MESH_AXES, sizes, strict=True)), len(devices))
    groups = {}
    for device in devices:
        groups.setdefault(getattr(device, "slice_index", device.process_index), []).append(device)
    if slices > 1 and len(groups) > 1:
        if len(groups) != slices:
            raise ValueError(
                f"slices={slices}, but the devices form {len(groups)} slices; set slices to "
                f"{len(groups)}, or to 1 to treat them as one"
            )
        # Only the axis "slice" crosses the data-centre network
        own = sizes | {"slice": 1}
        placed = np.concatenate([_placed(groups[key], own, exchange) for key in sorted(groups)])
    else:
        placed = _placed(devices, sizes, exchange)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _placed(devices, sizes, exchange):
    """Arrange the devices of one slice in an array of these sizes.

    Raises:
        ValueError: If the slice has another number of devices.
    """
    if len(devices) != math.prod(sizes.values()):
        raise ValueError(
            f"slices of unlike size: one has {len(devices)} devices; take whole slices"
        )
    torus = torus_of(tuple(devices))
    if torus is None and hasattr(devices[0], "coords"):
        _say_without_torus(len(devices))
    if torus is not None and torus.sides:
        experts = sizes["expert"]
        numbers = place(torus, sizes, exchange(experts) if exchange and experts > 1 else 1.0)
    else:
        ids = [device.id if device.platform == "gpu" else 0 for device in devices]
        # As in jax's mesh_utils: a GPU's id follows the network, the order of the processes does not
        numbers = np.argsort(ids, kind="stable").reshape(tuple(sizes.values()))
    array = np.empty(len(devices), object)
    array[:] = devices
    return array[numbers]


@functools.cache
def _say_without_torus(count):
    say(f"the coordinates of {count} TPU devices fill no box: the mesh takes them in jax's order")


def group_mesh(mesh: Mesh, processes: int):
    """Make a mesh like this one over the devices of this process's group.

    The axis data takes the devices that the other axes leave.

    Args:
        mesh: The mesh over all processes.
        processes: A group is this many consecutive processes.

    Raises:
        ValueError: As make_mesh, where the axes do not divide the group's devices; and where the
            processes do not split into whole groups.
    """
    if jax.process_count() % processes:
        raise ValueError(
            f"{jax.process_count()} processes do not split into groups of {processes}; "
            f"set it to a divisor of {jax.process_count()}"
        )
    if jax.process_count() == processes:
        return mesh
    group = jax.process_index() // processes
    devices = [device for device in jax.devices() if device.process_index // processes == group]
    try:
        return mesh_of(mesh, devices)
    except ValueError as error:
        raise ValueError(f"groups of {processes} processes: {error}") from error


def _filled(sizes, devices):
    """Return the sizes of the axes, with the devices that the others leave in place of -1."""
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"{size_name(axis)}={size}: give a positive size, or -1 for the rest")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"{_sizes(free)} are all -1; only one axis can take what is left")
    product = math.prod(abs(size) for size in sizes.values())
    if devices % product or (not free and devices != product):
        fixed = {axis: size for axis, size in sizes.items() if axis not in free}
        # The message names sizes of 1 only if there are no others
        fixed = {axis: size for axis, size in fixed.items() if size > 1} or fixed
        verb = "divide" if free else "equal"
        raise ValueError(
            f"{_sizes(fixed, sizes)} make {product}, which does not {verb} the {devices} devices; "
            "change one of them, or set one to -1"
        )
    return sizes | {axis: devices // product for axis in free}


def size_name(axis: str):
    """Return the argument of make_mesh that sets the size of a mesh axis."""
    return "slices" if axis == "slice" else axis


def _sizes(axes, sizes=None):
    return ", ".join(size_name(a) + (f"={sizes[a]}" if sizes else "") for a in axes)


def mesh_of(mesh: Mesh, devices: list):
    """Make a mesh of some of a mesh's devices, with its sizes on all axes except slice and data.

    The devices are one slice, and data takes the devices that the other axes leave.
    """
    return make_mesh(
        pipeline=mesh.shape["pipeline"],
        fsdp=mesh.shape["fsdp"],
        expert=mesh.shape["expert"],
        context=mesh.shape["context"],
        tensor=mesh.shape["tensor"],
        devices=devices,
    )
