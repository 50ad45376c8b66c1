"""Build the Mesh over every device from the axis sizes in the config."""

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
    """config.mesh, the arguments of make_mesh: the size of each axis; -1 takes the devices that are left."""

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
    """Arrange devices along MESH_AXES. Each argument is the size of an axis; slices is that of "slice".

    One size may be -1: it takes the devices that the others leave. slices counts the groups of devices that
    only a data-centre network joins: TPU slices or, where devices have no slice index, processes. On the
    torus of a slice parallel.placement says where each axis lies; other devices are taken in jax's order.
    devices: default all devices of all processes. exchange: of placement.place, a function of the devices of
    the axis expert; None for 1.0. Axes are Auto: the compiler places whatever no sharding names. Raises
    ValueError unless the product of the sizes is the number of devices.
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
    """The devices of one slice as an array of these sizes. Raises ValueError where the slice has too few."""
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
    """A mesh like this one over the devices of this process's group; the axis data takes the rest.

    A group is `processes` consecutive processes. Raises ValueError, as make_mesh does, where the axes do not
    divide its devices, and where the processes do not split into whole groups.
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
    """The sizes of the axes; one that is -1 is replaced by the devices that the others leave."""
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
    """The argument of make_mesh that gives a mesh axis its size."""
    return "slices" if axis == "slice" else axis


def _sizes(axes, sizes=None):
    return ", ".join(size_name(a) + (f"={sizes[a]}" if sizes else "") for a in axes)


def mesh_of(mesh: Mesh, devices: list):
    """The Mesh of some of a mesh's devices, with its sizes along all axes but slice and data: the devices are
    one slice, and data takes those that are left.
    """
    return make_mesh(
        pipeline=mesh.shape["pipeline"],
        fsdp=mesh.shape["fsdp"],
        expert=mesh.shape["expert"],
        context=mesh.shape["context"],
        tensor=mesh.shape["tensor"],
        devices=devices,
    )
