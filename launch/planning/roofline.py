"""The seconds that one device needs for a compiled program: at least, and likely.

Memory and matrix unit overlap within an operation. The symbols:

    o      seconds of n operations, one after the other
    b      seconds of all memory traffic, with the copies that run at the same time
    a      seconds of the links, for asynchronous collectives
    w      seconds of the links, for m other collectives, which the program waits for
    p, q   latency of an operation and of a collective, see costs.chips.Chip; gathers and scatters
           take more where their rows are so short that issuing one takes longer than moving it

    at least   max(o, b, a + w)                peaks only: all collectives hidden, no latency
    likely     max(o + n p, b, a) + w + m q    as compiled: asynchronous ones hide, the rest waits

The model leaves out the time that a kernel's tiles do not fill, the rest of the compiler's
schedule, and products of float32, which take several passes on a TPU. A token's experts take one
round of parallel.round_trip. If a router is so uneven that a device gets more than twice its share,
they take more: Seconds.two_rounds.
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
from launch.planning.records import CompiledProgram


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one device, for each thing that may limit it.

    Attributes:
        products: Its matrix products only.
        memory: Its memory traffic only.
        operations: Its operations, one after the other.
        asynchronous: Its links, for asynchronous collectives.
        waited: Its links, for collectives that the program waits for.
        operation_latency: The latency of all operations, and of short rows.
        collective_latency: The latency of the collectives that the program waits for.
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
        """Seconds of the links, for all collectives."""
        return self.asynchronous + self.waited

    @property
    def latency(self):
        """The latency of operations and collectives."""
        return self.operation_latency + self.collective_latency

    @property
    def at_least(self):
        """The least seconds, by the peaks only: see the top of this module."""
        return max(self.operations, self.memory, self.collectives)

    @property
    def likely(self):
        """The seconds of the program as it is compiled: see the top of this module."""
        operations = self.operations + self.operation_latency
        overlapped_seconds = max(operations, self.memory, self.asynchronous)
        return overlapped_seconds + self.waited + self.collective_latency

    @property
    def bound(self):
        """What limits the device: "products", "memory", "collectives" or "latency"."""
        names = ("products", "memory", "collectives", "latency")
        return max(names, key=lambda name: getattr(self, name))


class Seconds(NamedTuple):
    """The Rooflines of a program.

    Attributes:
        call: Of a call; for a program that decodes, without its tokens.
        token: Of one turn of the decoding loop; None for a program that does not decode.
        two_rounds: Of a turn that exchanges experts' rows in two rounds; None without such rounds.
    """

    call: Roofline
    token: Roofline | None = None
    two_rounds: Roofline | None = None

    @property
    def main(self):
        """The Roofline of the part (a call or a token) that the Program's flops describe."""
        return self.token or self.call

    def of_step(self, program: Program):
        """Return the seconds (at least, likely) of all the program's calls in a step of the run."""
        calls, token = program.times, self.token or Roofline(0.0, 0.0, 0.0)
        return (
            calls * self.call.at_least + program.token_steps * token.at_least,
            calls * self.call.likely + program.token_steps * token.likely,
        )


def seconds_of(program: Program, compiled: CompiledProgram, chip: Chip):
    """Return the Seconds of a program on devices of this chip; None if the compiler refuses it."""
    if compiled.refusal is not None:
        return None
    costs = compiled.costs.values()
    return Seconds(*(cost and roofline(cost, chip, program.mesh) for cost in costs))


def roofline(cost: Cost, chip: Chip, mesh: Mesh):
    """Return the Roofline of a program's Cost.

    Args:
        chip: The kind of the devices.
        mesh: The Mesh of the devices.
    """
    # For each label of flops: a product's seconds at the peak of its dtype, over its seconds at the
    # peak of bfloat16
    slowness = chip.flops_per_second / np.array(
        [chip.peaks.get(_operand(label), chip.flops_per_second) for label in cost.flops]
    )
    total_flops = cost.flops.total()
    scaled_flops = float(slowness @ np.array(list(cost.flops.values()))) if total_flops else 0.0
    operations = sum(
        times
        * max(
            flops * scaled_flops / max(total_flops, 1) / chip.flops_per_second,
            moved_bytes / chip.hbm_bytes_per_second,
        )
        for (flops, moved_bytes), times in cost.operations.items()
    )
    hidden_seconds = waited_seconds = 0.0
    for (kind, axes), collective in cost.collectives.items():
        hidden_seconds += collective_seconds(kind, axes, collective.hidden_bytes, chip, mesh)
        waited_seconds += collective_seconds(
            kind, axes, collective.wire_bytes - collective.hidden_bytes, chip, mesh
        )
    num_waits = cost.collective_count - cost.asynchronous_count
    issuing = sum(
        num_rows * max(chip.seconds_per_row - row_bytes / chip.hbm_bytes_per_second, 0)
        for row_bytes, num_rows in cost.rows.items()
    )
    return Roofline(
        products=scaled_flops / chip.flops_per_second,
        memory=cost.hbm_bytes / chip.hbm_bytes_per_second,
        operations=operations,
        asynchronous=hidden_seconds,
        waited=waited_seconds,
        operation_latency=(cost.count - cost.beside_count) * chip.seconds_per_operation + issuing,
        collective_latency=num_waits * chip.seconds_per_collective,
    )


def _operand(label):
    """Return the dtype X of a label in Cost.flops that ends in "X x X"; else "bf16"."""
    lhs, _, rhs = label.split(", ")[-1].partition(" x ")
    return lhs if lhs == rhs else "bf16"


def collective_seconds(kind: str, axes: tuple, wire_bytes: float, chip: Chip, mesh: Mesh):
    """Return the seconds in which one device sends wire_bytes in a collective over these axes.

    They are the seconds of the busiest link, see deepseek_jax.parallel.torus; over slices, of the
    network.
    """
    if "slice" in axes:
        return wire_bytes / chip.network
    return wire_bytes * busiest_link(kind, axes, mesh) / chip.link


def share_of_peak(flops: float, seconds: float, chip: Chip, devices: int):
    """Return the MFU: the model's FLOPs as a share of all devices' bfloat16 peak in these seconds.

    It is NaN for 0 seconds.

    Args:
        flops: Over all devices.
    """
    return flops / (seconds * devices * chip.flops_per_second) if seconds else math.nan
