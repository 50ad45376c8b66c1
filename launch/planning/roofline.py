"""The seconds that one device needs for a compiled program, by its peaks alone: a lower bound, twice.

Memory and matrix unit overlap within an operation. With everything hidden, the links work beside them; with
nothing hidden, each collective waits. What the model leaves out: the time that a kernel's tiles do not fill,
latencies, the compiler's schedule, and products of float32, which take several passes on a TPU.
"""

import dataclasses
import math

import numpy as np
from jax.sharding import Mesh

from deepseek_jax.costs.chips import Chip
from launch.planning.hlo import Cost


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one device: of its products alone, its memory alone, its operations one after the other,
    and its collectives.
    """

    products: float
    memory: float
    operations: float
    collectives: float

    @property
    def hidden(self):
        """With all collectives hidden behind operations."""
        return max(self.operations, self.collectives)

    @property
    def exposed(self):
        """With no collective hidden."""
        return self.operations + self.collectives

    @property
    def bound(self):
        """What binds: "products", "memory" or "collectives"."""
        terms = {name: getattr(self, name) for name in ("products", "memory", "collectives")}
        return max(terms, key=terms.get)


def roofline(cost: Cost, chip: Chip, mesh: Mesh):
    """The Roofline of a program's Cost on devices of this chip. mesh: the Mesh of its devices."""
    # dtype -> a product's seconds at its peak over those at bfloat16's
    slowness = chip.flops_per_second / np.array(
        [chip.peaks.get(_operand(label), chip.flops_per_second) for label in cost.flops]
    )
    total = cost.flops.total()
    scaled = float(slowness @ np.array(list(cost.flops.values()))) if total else 0.0
    operations = sum(
        times
        * max(
            flops * scaled / max(total, 1) / chip.flops_per_second,
            moved / chip.hbm_bytes_per_second,
        )
        for (flops, moved), times in cost.operations.items()
    )
    collectives = sum(
        collective_seconds(kind, axes, collective.wire_bytes, chip, mesh)
        for (kind, axes), collective in cost.collectives.items()
    )
    return Roofline(
        products=scaled / chip.flops_per_second,
        memory=cost.hbm_bytes / chip.hbm_bytes_per_second,
        operations=operations,
        collectives=collectives,
    )


def _operand(label):
    """The dtype of both operands in a label of Cost.flops that ends in "bf16 x bf16", else bf16."""
    left, _, right = label.split(", ")[-1].partition(" x ")
    return left if left == right else "bf16"


def collective_seconds(kind: str, axes: tuple, wire_bytes: float, chip: Chip, mesh: Mesh):
    """Seconds in which one device sends wire_bytes in a collective over these axes of the mesh.

    On a torus a group uses two links along each dimension that it extends over, one where it is two devices
    wide: https://jax-ml.github.io/scaling-book/sharding. In an exchange a byte travels a quarter of a ring on
    average, along the longest dimension. Without coordinates a switch joins the devices.
    """
    if "slice" in axes:
        return wire_bytes / chip.network
    group = _group(axes, mesh)
    extents = [n for n in _extents(group) if n > 1]
    if not extents:
        return wire_bytes / chip.link
    if kind == "collective-permute":
        # Neighbours, over one link
        return wire_bytes / chip.link
    links = [2 if n > 2 else 1 for n in extents]
    if kind in ("all-to-all", "ragged-all-to-all"):
        # The average is over all devices, and wire_bytes leave out what stays where it is
        whole = wire_bytes * len(group) / (len(group) - 1)
        hops = zip(extents, links, strict=True)
        return max(whole * n / 4 / (count * chip.link) for n, count in hops)
    return wire_bytes / (sum(links) * chip.link)


def _group(axes, mesh: Mesh):
    """The devices that the first one exchanges with along these axes, itself among them."""
    at = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
    return np.ravel(mesh.devices[at])


def _extents(group):
    """How many devices wide a group is along each dimension of the torus; [] without coordinates."""
    if not hasattr(group[0], "coords"):
        return []
    coordinates = np.array([device.coords for device in group])
    return [len(np.unique(column)) for column in coordinates.T]


def share_of_peak(flops: float, seconds: float, chip: Chip, devices: int):
    """MFU: the model's FLOPs over all devices, as a share of their bfloat16 peak in these seconds."""
    return flops / (seconds * devices * chip.flops_per_second) if seconds else math.nan
