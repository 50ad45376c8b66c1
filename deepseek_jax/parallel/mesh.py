"""From four numbers of a config to a Mesh over every device."""

import jax
from jax.sharding import AxisType

from deepseek_jax.parallel.rules import MESH_AXES


def make_mesh(data=-1, fsdp=1, expert=1, tensor=1):
    """Lay the devices of all processes out on MESH_AXES: the arguments are the axes' sizes.

    One size may be -1: whatever the others leave. Axes are Auto: the compiler places whatever no
    sharding names. Raises ValueError unless the sizes' product is the number of devices.
    """
    sizes = dict(zip(MESH_AXES, (data, fsdp, expert, tensor), strict=True))
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"config.mesh.{axis}={size}: give a positive size, or -1 for the rest")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"{_fields(free)} are all -1; only one axis can take what is left")

    devices, product = jax.device_count(), 1
    for size in sizes.values():
        product *= abs(size)
    if devices % product or (not free and devices != product):
        fixed = [axis for axis in MESH_AXES if axis not in free]
        verb = "divide" if free else "equal"
        raise ValueError(
            f"{_fields(fixed, sizes)} make {product}, which does not {verb} the {devices} devices; "
            "change one of them, or set one to -1"
        )
    for axis in free:
        sizes[axis] = devices // product
    auto = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=auto)


def _fields(axes, sizes=None):
    return ", ".join(f"config.mesh.{a}" + (f"={sizes[a]}" if sizes else "") for a in axes)
