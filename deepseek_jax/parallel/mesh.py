"""Build the Mesh over every device from the axis sizes in the config."""

import dataclasses
import functools
import math
from collections.abc import Sequence

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
    *,
    slices: int = 1,
    pipeline: int = 1,
    data: int = -1,
    fsdp: int = 1,
    expert: int = 1,
    context: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arrange devices along MESH_AXES. Each argument is the size of an axis; slices is that of "slice".

    One size may be -1: it takes the devices that the others leave. slices counts the groups of devices that
    only a data-centre network joins: TPU slices or, where devices have no slice index, processes. Within one
    process devices are taken in order. devices: default all devices of all processes. Axes are Auto: the
    compiler places whatever no sharding names. Raises ValueError unless the product of the sizes is the
    number of devices, and for sizes that jax cannot lay over the torus of a TPU.
    """
    devices = jax.devices() if devices is None else devices
    sizes = (slices, pipeline, data, fsdp, expert, context, tensor)
    sizes = _filled(dict(zip(MESH_AXES, sizes, strict=True)), len(devices))
    shape = tuple(sizes.values())
    groups = {getattr(device, "slice_index", device.process_index) for device in devices}
    if slices > 1 and len(groups) > 1:
        if len(groups) != slices:
            raise ValueError(
                f"slices={slices}, but the devices form {len(groups)} slices; set slices to "
                f"{len(groups)}, or to 1 to treat them as one"
            )
        # Only the axis "slice" crosses the data-centre network: the second shape is 1 along all others
        place = functools.partial(
            mesh_utils.create_hybrid_device_mesh,
            (1, *shape[1:]),
            (slices,) + (1,) * (len(shape) - 1),
            devices,
            process_is_granule=not hasattr(devices[0], "slice_index"),
        )
    else:
        place = functools.partial(mesh_utils.create_device_mesh, shape, devices)
    try:
        # Without this flag a TPU refuses all sizes that cut a side of its torus in two
        placed = place(allow_split_physical_axes=True)
    except (TypeError, ValueError) as error:
        # With it jax loses prime factors of some sizes and sides, 10 and 28 among them, and fails later
        wide = [axis for axis, size in sizes.items() if size > 1]
        raise ValueError(
            f"{_sizes(wide, sizes)} cannot be laid over these devices, as jax cannot cut a side of their "
            "torus so; set each size to a product of whole sides of the slice"
        ) from error
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


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
