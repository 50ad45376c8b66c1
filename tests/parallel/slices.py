"""TPU slices that are not there: devices with the coordinates that libtpu gives, and meshes over them."""

import dataclasses
import itertools

import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from deepseek_jax.costs.chips import CHIPS
from deepseek_jax.parallel import MESH_AXES


@dataclasses.dataclass(frozen=True)
class Device:
    """What meshes read of a TPU device."""

    coords: tuple
    core_on_chip: int = 0
    device_kind: str = "TPU v5"
    slice_index: int = 0
    process_index: int = 0
    platform: str = "tpu"


def slice_of(topology: str, slice_index: int = 0):
    """The devices of a slice such as "v5p:8x8x16", as jax lists them but for the order of hosts. A host has
    2 x 2 chips.
    """
    name, _, size = topology.partition(":")
    x, y, z = (*map(int, size.split("x")), 1)[:3]
    chip, devices = CHIPS[name], []
    for *place, core in itertools.product(range(z), range(y), range(x), range(chip.devices)):
        coords = tuple(reversed(place))
        host = (coords[2] * y + coords[1] // 2) * x + coords[0] // 2
        devices.append(Device(coords, core, chip.device_kind, slice_index, host))
    return devices


def grid_of(topology: str):
    """The devices of a slice as an array of its sides."""
    sides = list(map(int, topology.partition(":")[2].split("x")))
    grid = np.empty((*sides, CHIPS[topology.partition(":")[0]].devices), object)
    for device in slice_of(topology):
        grid[(*device.coords[: len(sides)], device.core_on_chip)] = device
    return grid if grid.shape[-1] > 1 else grid[..., 0]


def jax_mesh(sizes: dict, devices: list):
    """The Mesh as jax's mesh_utils places it. sizes: of all MESH_AXES."""
    shape = [sizes[axis] for axis in MESH_AXES]
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES)
