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

    One size may be -1: that axis takes the devices that the other axes leave. parallel.rules says
    which axes of an array each of them splits.

    Attributes:
        slices: Groups of devices that only a data-centre network joins; they split the batch.
        pipeline: Stages of layers, through which micro-batches pass.
        data: Splits the batch; every part has all parameters.
        fsdp: Splits the batch and the parameters.
        expert: Splits the batch and the experts.
        context: Splits the tokens of a row.
        tensor: Splits heads and the widths of MLPs.
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
    axis_sizes = (slices, pipeline, data, fsdp, expert, context, tensor)
    axis_sizes = _filled(dict(zip(MESH_AXES, axis_sizes, strict=True)), len(devices))
    devices_by_slice: dict[int, list[jax.Device]] = {}
    for device in devices:
        devices_by_slice.setdefault(
            getattr(device, "slice_index", device.process_index), []
        ).append(device)
    if slices > 1 and len(devices_by_slice) > 1:
        if len(devices_by_slice) != slices:
            raise ValueError(
                f"slices={slices}, but the devices form {len(devices_by_slice)} slices; set slices to "
                f"{len(devices_by_slice)}, or to 1 to treat them as one"
            )
        # Only the axis "slice" crosses the data-centre network
        slice_sizes = axis_sizes | {"slice": 1}
        device_array = np.concatenate(
            [
                _placed(devices_by_slice[key], slice_sizes, exchange)
                for key in sorted(devices_by_slice)
            ]
        )
    else:
        device_array = _placed(devices, axis_sizes, exchange)
    return Mesh(device_array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _placed(devices, axis_sizes, exchange):
    """Arrange the devices of one slice in an array of these sizes.

    Raises:
        ValueError: If the slice has another number of devices.
    """
    if len(devices) != math.prod(axis_sizes.values()):
        raise ValueError(
            f"slices of unlike size: one has {len(devices)} devices; take whole slices"
        )
    torus = torus_of(tuple(devices))
    if torus is None and hasattr(devices[0], "coords"):
        _say_without_torus(len(devices))
    if torus is not None and torus.sides:
        expert_devices = axis_sizes["expert"]
        device_numbers = place(
            torus, axis_sizes, exchange(expert_devices) if exchange and expert_devices > 1 else 1.0
        )
    else:
        ids = [device.id if device.platform == "gpu" else 0 for device in devices]
        # As in jax's mesh_utils: a GPU's id follows the network, the order of the processes does not
        device_numbers = np.argsort(ids, kind="stable").reshape(tuple(axis_sizes.values()))
    array = np.empty(len(devices), object)
    array[:] = devices
    return array[device_numbers]


@functools.cache
def _say_without_torus(count):
    say(f"the coordinates of {count} TPU devices fill no box: the mesh takes them in jax's order")


def group_mesh(mesh: Mesh, processes: int) -> Mesh:
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


def _filled(axis_sizes, count):
    """Return the sizes of the axes, with the devices that the others leave in place of -1."""
    for axis, size in axis_sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"{size_name(axis)}={size}: give a positive size, or -1 for the rest")
    free_axes = [axis for axis, size in axis_sizes.items() if size == -1]
    if len(free_axes) > 1:
        raise ValueError(f"{_sizes(free_axes)} are all -1; only one axis can take what is left")
    product = math.prod(abs(size) for size in axis_sizes.values())
    if count % product or (not free_axes and count != product):
        fixed_sizes = {axis: size for axis, size in axis_sizes.items() if axis not in free_axes}
        # The message names sizes of 1 only if there are no others
        fixed_sizes = {axis: size for axis, size in fixed_sizes.items() if size > 1} or fixed_sizes
        verb = "divide" if free_axes else "equal"
        raise ValueError(
            f"{_sizes(fixed_sizes, axis_sizes)} make {product}, which does not {verb} the {count} devices; "
            "change one of them, or set one to -1"
        )
    return axis_sizes | {axis: count // product for axis in free_axes}


def size_name(axis: str) -> str:
    """Return the argument of make_mesh that sets the size of a mesh axis."""
    return "slices" if axis == "slice" else axis


def _sizes(axes, axis_sizes=None):
    return ", ".join(
        size_name(axis) + (f"={axis_sizes[axis]}" if axis_sizes else "") for axis in axes
    )


def mesh_of(mesh: Mesh, devices: list[jax.Device]) -> Mesh:
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
