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
from deepseek_jax.parallel.torus import busiest_link
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
    """Seconds in which one device sends wire_bytes in a collective over these axes of the mesh: what its
    busiest link carries, see deepseek_jax.parallel.torus.
    """
    if "slice" in axes:
        return wire_bytes / chip.network
    return wire_bytes * busiest_link(kind, axes, mesh) / chip.link


def share_of_peak(flops: float, seconds: float, chip: Chip, devices: int):
    """MFU: the model's FLOPs over all devices, as a share of their bfloat16 peak in these seconds."""
    return flops / (seconds * devices * chip.flops_per_second) if seconds else math.nan
