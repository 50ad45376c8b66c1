"""From a few numbers of a config to a Mesh over every device."""

import dataclasses
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from deepseek_jax.parallel.rules import MESH_AXES


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
    *, slices=1, pipeline=1, data=-1, fsdp=1, expert=1, context=1, tensor=1, devices=None
):
    """Lay devices out on MESH_AXES: the arguments are the axes' sizes, slices that of the axis "slice".

    One size may be -1: whatever the others leave. slices counts the groups of devices that only a
    data-centre network joins: TPU slices, or, where devices know of none, the processes; within one process
    devices are taken in order. devices: default all of all processes. Axes are Auto: the compiler places
    whatever no sharding names. Raises ValueError unless the sizes' product is the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = (slices, pipeline, data, fsdp, expert, context, tensor)
    sizes = _filled(dict(zip(MESH_AXES, sizes, strict=True)), len(devices))
    shape = tuple(sizes.values())
    groups = {getattr(device, "slice_index", device.process_index) for device in devices}
    if slices > 1 and len(groups) > 1:
        if len(groups) != slices:
            raise ValueError(
                f"slices={slices}, but the devices form {len(groups)} slices; set it to that, "
                "or to 1 to treat them as one"
            )
        placed = mesh_utils.create_hybrid_device_mesh(
            (1, *shape[1:]),
            (slices,) + (1,) * (len(shape) - 1),
            devices,
            process_is_granule=not hasattr(devices[0], "slice_index"),
            allow_split_physical_axes=True,
        )
    else:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def group_mesh(mesh, processes):
    """A mesh like this one on the devices of this process's group alone; data takes what the axes leave.

    A group is so many processes in a row. Raises ValueError, as make_mesh, where the axes do not divide its
    devices, and where the processes make no whole groups.
    """
    if jax.process_count() % processes:
        raise ValueError(
            f"groups of {processes} processes do not divide the {jax.process_count()} processes; "
            "set it to a divisor"
        )
    if jax.process_count() == processes:
        return mesh
    group = jax.process_index() // processes
    devices = [device for device in jax.devices() if device.process_index // processes == group]
    sizes = {axis: size for axis, size in mesh.shape.items() if axis not in ("slice", "data")}
    try:
        return make_mesh(**sizes, devices=devices)
    except ValueError as error:
        raise ValueError(f"groups of {processes} processes: {error}") from error


def _filled(sizes, devices):
    """The axes' sizes with the one that is -1 worked out."""
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"{size_name(axis)}={size}: give a positive size, or -1 for the rest")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"{_sizes(free)} are all -1; only one axis can take what is left")
    product = math.prod(abs(size) for size in sizes.values())
    if devices % product or (not free and devices != product):
        fixed = {axis: size for axis, size in sizes.items() if axis not in free}
        fixed = {axis: size for axis, size in fixed.items() if size > 1} or fixed
        verb = "divide" if free else "equal"
        raise ValueError(
            f"{_sizes(fixed, sizes)} make {product}, which does not {verb} the {devices} devices; "
            "change one of them, or set one to -1"
        )
    return sizes | {axis: devices // product for axis in free}


def size_name(axis):
    """The argument of make_mesh that gives a mesh axis its size."""
    return "slices" if axis == "slice" else axis


def _sizes(axes, sizes=None):
    return ", ".join(size_name(a) + (f"={sizes[a]}" if sizes else "") for a in axes)
