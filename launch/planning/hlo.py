"""What one device does in a compiled program, from its optimised text.

A loop's body counts as often as it runs; in XLA's own cost_analysis it counts once. Of the loop that decodes
nobody knows how often: what a call does and what one turn of the loop does are counted apart.
"""

import dataclasses
import re
from collections import Counter

from deepseek_jax.parallel.dispatch import RARE
from deepseek_jax.parallel.round_trip import ROUNDS
from launch.planning.hlo_collectives import Collective, collective_of, continues
from launch.planning.hlo_flops import GROUPED, operation_flops
from launch.planning.hlo_loops import endless_loops, trip_count
from launch.planning.hlo_text import Computation, Operation, parse
from launch.planning.hlo_traffic import HALVES, does_work, operation_bytes

# XLA writes a number near 2**63 for what it cannot estimate
NO_ESTIMATE = 2**50


@dataclasses.dataclass
class Cost:
    """Work of one device.

    flops: {label: FLOPs}: of products by operands' dtypes, of Pallas kernels by name. unknown: {kernel: how
    often it runs} of kernels whose FLOPs are not counted. hbm_bytes: read and written. operations: {(FLOPs,
    bytes) of an operation: how often it runs}, of those that run one after the other. count: of all
    operations, collectives too, see hlo_traffic.does_work; beside_count: of those of them that are copies
    beside other work. collectives: {(kind, axes): Collective}. cycles: XLA's estimates for a TPU; it gives
    none for kernels and collectives.
    """

    flops: Counter = dataclasses.field(default_factory=Counter)
    unknown: Counter = dataclasses.field(default_factory=Counter)
    hbm_bytes: float = 0.0
    operations: Counter = dataclasses.field(default_factory=Counter)
    count: int = 0
    beside_count: int = 0
    collectives: dict = dataclasses.field(default_factory=dict)
    cycles: float = 0.0

    def add(self, other, times=1):
        for name in ("flops", "unknown", "operations"):
            mine = getattr(self, name)
            for label, number in getattr(other, name).items():
                mine[label] += times * number
        for key, collective in other.collectives.items():
            self.collectives.setdefault(key, Collective()).add(collective, times)
        self.count += times * other.count
        self.beside_count += times * other.beside_count
        self.hbm_bytes += times * other.hbm_bytes
        self.cycles += times * other.cycles

    @property
    def sent_bytes(self):
        """What the device sends in all collectives."""
        return sum(one.wire_bytes for one in self.collectives.values())

    @property
    def collective_count(self):
        return sum(one.count for one in self.collectives.values())

    @property
    def asynchronous_count(self):
        """How many of the collectives overlap with other work."""
        return sum(one.asynchronous for one in self.collectives.values())

    def order(self):
        """By what the branches of a conditional compare."""
        return self.flops.total(), self.hbm_bytes, self.sent_bytes


def program_cost(text: str, mesh_shape: dict, filled: float = 1.0) -> Cost:
    """The Cost of a program, from the text of `compiled.as_text()`; of a CPU or a TPU.

    mesh_shape: {axis: size} in the order of the devices, as `mesh.shape`. filled: the share of a grouped
    product's rows that belong to an expert: a kernel skips the others. The most expensive branch of a
    conditional counts, but none in a scope "rarely". What a loop's condition computes does not count, and a
    loop of unknown length counts as one turn. Raises ValueError for text that is no program.
    """
    computations, entry = parse(text)
    return _Walk(computations, dict(mesh_shape), filled).scheduled(entry)


def decoding_costs(text: str, mesh_shape: dict, filled: float = 1.0):
    """(the Cost of a call without its tokens, that of a token: of one turn of the decoding loop, that of a
    token whose experts' rows are exchanged in two rounds, or None): the largest of those loops of the program
    whose length nobody knows. Arguments as of program_cost.

    Raises ValueError for text that is no program, or has no such loop.
    """
    computations, entry = parse(text)
    walk = _Walk(computations, dict(mesh_shape), filled)
    tokens = {
        name: walk.scheduled(name) for name in endless_loops(computations, computations[entry])
    }
    if not tokens:
        raise ValueError("the program decodes, and its text has no loop of unknown length")
    walk.apart = max(tokens, key=lambda name: tokens[name].order())
    token, twice = tokens[walk.apart], dataclasses.replace(walk, rounds=2)
    two_rounds = twice.scheduled(walk.apart)
    return walk.scheduled(entry), token, two_rounds if two_rounds.count > token.count else None


@dataclasses.dataclass
class _Walk:
    """apart: the name of the loop's body that is no part of a call. rounds: of parallel.round_trip."""

    computations: dict[str, Computation]
    mesh_shape: dict
    filled: float
    apart: str | None = None
    rounds: int = 1

    def scheduled(self, name, asynchronous=False):
        """The Cost of a computation whose operations run one by one."""
        computation, cost = self.computations[name], Cost()
        for operation in computation.values():
            called, times = self._called(computation, operation, asynchronous)
            own = self._one(computation, operation, asynchronous)
            moved = operation_bytes(self.computations, computation, operation)
            # A fusion's products are of one operation, as its traffic is
            flops = own.flops.total() + (called.flops.total() if operation.kind == "fusion" else 0)
            # A collective reads and writes while it sends, which takes longer
            beside = operation.kind.endswith(HALVES)
            if (flops or moved) and not beside and not own.collectives:
                cost.operations[flops, moved] += 1
            cost.count += does_work(operation)
            cost.beside_count += does_work(operation) and beside and not own.collectives
            cost.add(called, times)
            cost.add(own)
            cost.hbm_bytes += moved
            if operation.kind not in ("while", "conditional", "call"):
                cost.cycles += _cycles(operation)
        return cost

    def _called(self, computation, operation, asynchronous):
        """(Cost, times) of the computations that an operation runs."""
        if operation.kind == "while":
            body = operation.attribute(r"body=%?([\w.\-]+)")
            if body == self.apart:
                return Cost(), 1
            turns = trip_count(self.computations, computation, operation)
            if turns is None:
                turns = self.rounds if _scope(operation).endswith(f"/{ROUNDS}/while") else 1
            return self.scheduled(body, asynchronous), turns
        if operation.kind == "conditional":
            names = [name for name in _branches(operation) if not self._is_rare(name)]
            branches = (self.scheduled(name, asynchronous) for name in names)
            return max(branches, key=Cost.order), 1
        if operation.kind == "fusion":
            return self._fused(operation, asynchronous), 1
        if operation.kind == "call":
            return self.scheduled(operation.called(), asynchronous), 1
        if operation.kind in ("async-start", "call-start"):
            return self.scheduled(operation.called(), asynchronous=True), 1
        return Cost(), 1

    def _is_rare(self, name):
        """Whether a branch is what parallel.dispatch does where an expert's buffer overflows."""
        return any(
            f"/{RARE}/" in _scope(operation) for operation in self.computations[name].values()
        )

    def _fused(self, fusion, asynchronous):
        """The Cost of a fusion's body: its memory traffic is that of the fusion."""
        body, cost = self.computations[fusion.called()], Cost()
        # TPU's form of a reduce-scatter, by the compiler's name. In other fusions a collective overlaps
        scatters = fusion.called().startswith("all-reduce-scatter")
        for operation in body.values():
            if operation.kind == "fusion":
                cost.add(self._fused(operation, asynchronous))
            if not continues(body, operation):
                cost.add(self._one(body, operation, asynchronous or not scatters, scatters))
        return cost

    def _one(self, computation, operation: Operation, asynchronous, scatters=False):
        cost = Cost()
        if product := operation_flops(computation, operation):
            label, flops = product
            if flops is None:
                cost.unknown[label] += 1
            else:
                cost.flops[label] += flops * (self.filled if label.startswith(GROUPED) else 1)
        moved = collective_of(
            computation, operation, self.mesh_shape, scatters=scatters, asynchronous=asynchronous
        )
        if moved:
            cost.collectives = dict([moved])
        return cost


def _scope(operation):
    """Where an operation comes from: names of functions, modules and scopes, with slashes between them."""
    return operation.attribute(r'op_name="([^"]*)"') or ""


def _branches(conditional):
    listed = conditional.attribute(r"branch_computations=\{([^}]*)\}")
    if listed:
        return re.findall(r"[\w.\-]+", listed)
    sides = ("true", "false")
    return [conditional.attribute(rf"{side}_computation=%?([\w.\-]+)") for side in sides]


def _cycles(operation):
    cycles = int(operation.attribute(r'"estimated_cycles":"(\d+)"') or 0)
    return cycles if cycles < NO_ESTIMATE else 0
