"""The seconds that one device needs for a compiled program: at least, and likely.

Memory and matrix unit overlap within an operation. o are the seconds of n operations one after the other; b
those of all memory traffic, with the copies that run beside them; a and w those of the links, for collectives
that are asynchronous and for m others, which the program waits for; p and q the latencies of an operation and
of a collective, see costs.chips.Chip:

    at least   max(o, b, a + w)                peaks alone: all collectives hidden, no latency
    likely     max(o + n p, b, a) + w + m q    as compiled: what is asynchronous hides, the rest waits

What the model leaves out: the time that a kernel's tiles do not fill, the rest of the compiler's schedule,
and products of float32, which take several passes on a TPU. A token's experts take one round of
parallel.round_trip; where a router is so uneven that a device gets more than twice its share, they take more:
Seconds.two_rounds.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from deepseek_jax.costs.chips import Chip
from deepseek_jax.costs.program import Program
from deepseek_jax.parallel.torus import busiest_link
from launch.planning.hlo import Cost
from launch.planning.records import Compiled


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one device: of its products alone, its memory alone, its operations one after the other, its
    links for collectives that are asynchronous and for those that it waits for; and the latency of all
    operations, and of the collectives that it waits for.
    """

    products: float
    memory: float
    operations: float
    asynchronous: float = 0.0
    waited: float = 0.0
    operation_latency: float = 0.0
    collective_latency: float = 0.0

    @property
    def collectives(self):
        return self.asynchronous + self.waited

    @property
    def latency(self):
        return self.operation_latency + self.collective_latency

    @property
    def at_least(self):
        """By the peaks alone, see the top of this module."""
        return max(self.operations, self.memory, self.collectives)

    @property
    def likely(self):
        """As it is compiled, see the top of this module."""
        operations = self.operations + self.operation_latency
        beside = max(operations, self.memory, self.asynchronous)
        return beside + self.waited + self.collective_latency

    @property
    def bound(self):
        """What binds: "products", "memory", "collectives" or "latency"."""
        names = ("products", "memory", "collectives", "latency")
        return max(names, key=lambda name: getattr(self, name))


class Seconds(NamedTuple):
    """The Roofline of a program's call, of one turn of its loop where it decodes: of a token, and of a token
    whose experts' rows are exchanged in two rounds.
    """

    call: Roofline
    token: Roofline | None = None
    two_rounds: Roofline | None = None

    @property
    def main(self):
        """The Roofline that belongs to the Program's tokens and flops."""
        return self.token or self.call

    def of_step(self, program: Program):
        """(at least, likely) of all that a step of the run calls of the program."""
        calls, token = program.times, self.token or Roofline(0.0, 0.0, 0.0)
        return (
            calls * self.call.at_least + program.token_steps * token.at_least,
            calls * self.call.likely + program.token_steps * token.likely,
        )


def seconds_of(program: Program, compiled: Compiled, chip: Chip):
    """The Seconds of a program on devices of this chip; None where the compiler refuses it."""
    if compiled.refusal is not None:
        return None
    costs = compiled.costs.values()
    return Seconds(*(cost and roofline(cost, chip, program.mesh) for cost in costs))


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
    hidden = waited = 0.0
    for (kind, axes), one in cost.collectives.items():
        hidden += collective_seconds(kind, axes, one.hidden_bytes, chip, mesh)
        waited += collective_seconds(kind, axes, one.wire_bytes - one.hidden_bytes, chip, mesh)
    waits = cost.collective_count - cost.asynchronous_count
    return Roofline(
        products=scaled / chip.flops_per_second,
        memory=cost.hbm_bytes / chip.hbm_bytes_per_second,
        operations=operations,
        asynchronous=hidden,
        waited=waited,
        operation_latency=(cost.count - cost.beside_count) * chip.seconds_per_operation,
        collective_latency=waits * chip.seconds_per_collective,
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
