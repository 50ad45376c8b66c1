"""The torus that the chips of a TPU slice form, and the load of a collective on its links.

All groups of a mesh run their collective at once. The load is estimated by cuts: a slice is cut in
two across a side, a ring in two places, in every possible way. The bytes that cross a cut, divided
by the links that it cuts, are the least that the busiest link carries.
"""

import dataclasses
import functools
import math

import numpy as np
from jax.sharding import Mesh

# Optical switches close every side of a slice of whole cubes of 4 x 4 x 4 chips to a ring:
# docs.cloud.google.com/tpu/docs/v5p. Twisted tori are treated as plain ones
CUBES = ("TPU v4", "TPU v5", "TPU v5p", "TPU7x")
# A side of 16 chips, the whole side of a pod, is a ring: jax-ml.github.io/scaling-book/tpus
FLAT = ("TPU v5 lite", "TPU v5e", "TPU v6 lite", "TPU v6e")
# Links between the cores of a TPU7x chip, in units of a core's own link. They are worth six links of a chip,
# and a core has half of each of its chip's links: docs.cloud.google.com/tpu/docs/tpu7x
CORE_LINKS = 12


@dataclasses.dataclass(frozen=True)
class Side:
    """A side of a torus.

    Attributes:
        length: Its length in devices.
        is_ring: True if its ends are joined.
        links: The number of links between two neighbours.
    """

    length: int
    is_ring: bool = False
    links: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Torus:
    """The sides of a slice, and the places of its devices.

    Attributes:
        sides: The sides that are longer than one device. The cores of a chip are the innermost
            side.
        positions: int[devices, sides].
    """

    sides: tuple[Side, ...]
    positions: np.ndarray

    def device_order(self):
        """Return which device is at each position: int[*lengths]."""
        lengths = [side.length for side in self.sides]
        order = np.empty(lengths, int)
        order[tuple(self.positions.T)] = np.arange(len(self.positions))
        return order


@functools.lru_cache(maxsize=64)
def torus_of(devices: tuple) -> Torus | None:
    """Find the Torus of devices, which are assumed to be a whole slice.

    None if they have no coordinates, or if their coordinates do not fill a box.
    """
    if not all(hasattr(device, "coords") for device in devices):
        return None
    positions = np.array(
        [(*device.coords, getattr(device, "core_on_chip", 0)) for device in devices]
    )
    positions -= positions.min(0)
    lengths = positions.max(0) + 1
    if math.prod(lengths) != len(devices) or len(np.unique(positions, axis=0)) != len(devices):
        return None
    *chip_lengths, num_cores = lengths.tolist()
    kind = getattr(devices[0], "device_kind", "")
    has_cubes = kind in CUBES and all(length % 4 == 0 for length in chip_lengths)
    sides = [Side(n, has_cubes or (kind in FLAT and n == 16)) for n in chip_lengths]
    sides.append(Side(num_cores, links=CORE_LINKS))
    is_long = lengths > 1
    return Torus(tuple(side for side in sides if side.length > 1), positions[:, is_long])


def counts_of(groups, side: Side):
    """Count a group's devices at each place of a side: int[groups, length].

    Args:
        groups: int[groups, n], places.
        side: The side.
    """
    return (groups[..., None] == np.arange(side.length)).sum(1)


def side_load(counts, side: Side):
    """Return the load of groups on a side, as float[3]: exchange, gather, links.

    exchange is what crosses the busiest link if every device sends one byte in equal parts to all
    devices of its group. gather is the same if every device sends one byte that all of its group
    receive. links is the number of links along this side that a device can use at once; interleaved
    groups share them.

    Args:
        counts: The result of counts_of for the groups.
        side: The side.
    """
    devices, rows = counts.sum(1)[:, None], counts.sum() / side.length
    widest_group = (counts > 0).sum(1).argmax()
    places = np.flatnonzero(counts[widest_group])
    if len(places) == 1:
        return np.zeros(3)
    counts_before = np.pad(np.cumsum(counts, 1), ((0, 0), (1, 0)))
    if side.is_ring:
        # Every arc of the ring
        first, last = np.triu_indices(side.length, 1)
        inside, cut_links = counts_before[:, last] - counts_before[:, first], 2 * side.links * rows
    else:
        inside, cut_links = counts_before[:, 1:-1], side.links * rows
    outside = devices - inside
    is_cut = (inside > 0) & (outside > 0)
    exchange = (inside * outside / devices).sum(0).max() / cut_links
    gather = np.where(is_cut, np.maximum(inside, outside), 0).sum(0).max() / cut_links
    # A group uses one row of the side for each of its devices that share a place along it
    row_share = devices[widest_group, 0] / len(places) / rows
    if _goes_round(places, side):
        return np.array([exchange, gather, 2 * side.links / (len(counts) * row_share)])
    crosses = (counts_before[:, 1:-1] > 0) & (counts_before[:, 1:-1] < devices)
    return np.array([exchange, gather, side.links / (crosses.sum(0).max() * row_share)])


def _goes_round(places, side):
    """Return True if a group's way through its places along a side is a ring.

    It is a ring if no single gap is the longest.
    """
    gaps = np.sort(np.diff(places, append=places[0] + side.length))
    return side.is_ring and gaps[-1] == gaps[-2]


def busiest(is_exchange, loads, devices):
    """Return the bytes on the busiest link for each byte that a device sends: float[...].

    Args:
        is_exchange: bool[...], True for all-to-alls; the rest are rings of gathers, scatters and
            sums.
        loads: float[..., sides, 3], from side_load.
        devices: int[...], the number of devices of a group.
    """
    exchange, gather, links = np.moveaxis(loads, -1, 0)
    # A device sends nothing to itself
    exchange_bytes = exchange.max(-1) * devices / (devices - 1)
    ring_bytes = np.maximum(1 / links.sum(-1), gather.max(-1) / (devices - 1))
    return np.where(is_exchange, exchange_bytes, ring_bytes)


@functools.lru_cache(maxsize=4096)
def busiest_link(kind: str, axes: tuple[str, ...], mesh: Mesh) -> float:
    """Return the bytes on a mesh's busiest link for each byte that a device sends in a collective.

    It is 1 if a switch joins the devices, and for exchanges with neighbours (collective-permute).

    Args:
        kind: XLA's kind of collective.
        axes: The axes of the mesh that the collective goes over, without "slice".
        mesh: The mesh.
    """
    sides_and_places = _places(mesh)
    axis_numbers = [mesh.axis_names.index(axis) for axis in axes]
    devices = math.prod(mesh.devices.shape[axis_number] for axis_number in axis_numbers)
    if sides_and_places is None or devices == 1 or kind == "collective-permute":
        return 1.0
    sides, places = sides_and_places
    groups = np.moveaxis(places, axis_numbers, range(-1 - len(axis_numbers), -1))
    groups = groups.reshape(-1, devices, len(sides))
    loads = [side_load(counts_of(groups[..., d], side), side) for d, side in enumerate(sides)]
    return float(busiest(kind.endswith("all-to-all"), np.array(loads), devices))


@functools.lru_cache(maxsize=64)
def _places(mesh):
    """Return the sides of a mesh's torus, and the place of each device; None without a torus.

    The places are int[*devices of one slice, sides]. All slices have the same placement.
    """
    devices = mesh.devices
    torus = torus_of(tuple(devices.flat))
    if torus is None and mesh.axis_names[0] == "slice":
        devices = devices[:1]
        torus = torus_of(tuple(devices.flat))
    if torus is None or not torus.sides:
        return None
    return torus.sides, torus.positions.reshape(*devices.shape, -1)


def placement_text(mesh: Mesh) -> str:
    """Describe how many places wide each axis of a mesh is along each side of its torus.

    For example "expert 4 x 2 x 4, fsdp 1 x 4 x 1 of 8 x 8 x 16"; "" without a torus.
    """
    sides_and_places = _places(mesh)
    if sides_and_places is None:
        return ""
    sides, places = sides_and_places
    texts = []
    for axis_number, (axis, size) in enumerate(mesh.shape.items()):
        # A slice is one place
        if min(size, places.shape[axis_number]) > 1:
            group = np.moveaxis(places, axis_number, 0).reshape(size, -1, len(sides))[:, 0]
            texts.append(f"{axis} {_by([len(set(column)) for column in group.T.tolist()])}")
    return f"{', '.join(texts)} of {_by([side.length for side in sides])}"


def _by(numbers):
    return " x ".join(map(str, numbers))
