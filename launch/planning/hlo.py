"""What one device does in a compiled program, from its optimised text.

A loop's body counts as often as it runs; XLA's own cost_analysis counts it once. Nobody knows how
often the decoding loop runs. So the work of a call and the work of one turn of that loop are
separate Costs.
"""

import dataclasses
import re
from collections import Counter

from deepseek_jax.parallel.bounded import RARE
from deepseek_jax.parallel.round_trip import ROUNDS
from launch.planning.hlo_collectives import Collective, collective_of, continues
from launch.planning.hlo_flops import GROUPED, operation_flops
from launch.planning.hlo_loops import endless_loops, trip_count
from launch.planning.hlo_text import Computation, Operation, parse
from launch.planning.hlo_traffic import HALVES, does_work, operation_bytes, rows_addressed

# XLA writes a number near 2**63 if it has no estimate
NO_ESTIMATE = 2**50


@dataclasses.dataclass
class Cost:
    """Work of one device.

    Attributes:
        flops: {label: FLOPs}. The label of a product is its operands' dtypes, and of a Pallas
            kernel its name.
        unknown: {kernel: how often it runs}, for kernels without a count of FLOPs.
        hbm_bytes: Bytes read and written.
        operations: {(FLOPs, bytes) of an operation: how often it runs}, for operations that run one
            after the other.
        count: The number of all operations, with collectives, see hlo_traffic.does_work.
        beside_count: How many of these are copies that run at the same time as other work.
        collectives: {(kind, axes): Collective}.
        cycles: XLA's estimates for a TPU. It gives none for kernels and collectives.
        rows: {bytes of a row: how many}, of the rows that gathers and scatters address.
    """

    flops: Counter = dataclasses.field(default_factory=Counter)
    unknown: Counter = dataclasses.field(default_factory=Counter)
    hbm_bytes: float = 0.0
    operations: Counter = dataclasses.field(default_factory=Counter)
    count: int = 0
    beside_count: int = 0
    collectives: dict[tuple[str, tuple[str, ...]], Collective] = dataclasses.field(
        default_factory=dict
    )
    cycles: float = 0.0
    rows: Counter = dataclasses.field(default_factory=Counter)

    def add(self, other, times=1):
        """Add another Cost `times` times."""
        for name in ("flops", "unknown", "operations", "rows"):
            counter = getattr(self, name)
            for label, number in getattr(other, name).items():
                counter[label] += times * number
        for key, collective in other.collectives.items():
            self.collectives.setdefault(key, Collective()).add(collective, times)
        self.count += times * other.count
        self.beside_count += times * other.beside_count
        self.hbm_bytes += times * other.hbm_bytes
        self.cycles += times * other.cycles

    @property
    def sent_bytes(self):
        """Bytes that the device sends in all collectives."""
        return sum(collective.wire_bytes for collective in self.collectives.values())

    @property
    def collective_count(self):
        """The number of all collectives."""
        return sum(collective.count for collective in self.collectives.values())

    @property
    def asynchronous_count(self):
        """The number of collectives that overlap with other work."""
        return sum(collective.asynchronous for collective in self.collectives.values())

    def order(self):
        """Return the numbers by which the branches of a conditional are compared."""
        return self.flops.total(), self.hbm_bytes, self.sent_bytes


def program_cost(text: str, mesh_shape: dict, filled: float = 1.0) -> Cost:
    """Return the Cost of a program that is compiled for a CPU or a TPU.

    The most expensive branch of a conditional counts, but never a branch in a scope "rarely". What
    a loop's condition computes does not count. A loop of unknown length counts as one turn.

    Args:
        text: What `compiled.as_text()` returns.
        mesh_shape: {axis: size} in the order of the devices, as `mesh.shape`.
        filled: The share of a grouped product's rows that belong to an expert. A kernel skips the
            other rows.

    Raises:
        ValueError: The text is not a program's.
    """
    computations, entry = parse(text)
    return _Walk(computations, dict(mesh_shape), filled).scheduled(entry)


def decoding_costs(text: str, mesh_shape: dict, filled: float = 1.0):
    """Return what a decoding program costs: each call, and each token.

    A token is one turn of the decoding loop: the largest of the program's loops that have no known
    length. The arguments are as for program_cost.

    Returns:
        (the Cost of a call without its tokens, the Cost of a token, the Cost of a token that
        exchanges experts' rows in two rounds). The last is None without such rounds.

    Raises:
        ValueError: The text is not a program's, or has no such loop.
    """
    computations, entry = parse(text)
    walk = _Walk(computations, dict(mesh_shape), filled)
    costs_by_loop = {
        name: walk.scheduled(name) for name in endless_loops(computations, computations[entry])
    }
    if not costs_by_loop:
        raise ValueError("the program decodes, and its text has no loop of unknown length")
    walk.apart = max(costs_by_loop, key=lambda name: costs_by_loop[name].order())
    token_cost, two_round_walk = costs_by_loop[walk.apart], dataclasses.replace(walk, rounds=2)
    two_round_cost = two_round_walk.scheduled(walk.apart)
    return (
        walk.scheduled(entry),
        token_cost,
        two_round_cost if two_round_cost.count > token_cost.count else None,
    )


@dataclasses.dataclass
class _Walk:
    """A walk through a program's computations that adds up Costs.

    Attributes:
        apart: The name of the loop body that does not count as a part of a call; None without one.
        rounds: How many rounds of parallel.round_trip a token takes.
    """

    computations: dict[str, Computation]
    mesh_shape: dict
    filled: float
    apart: str | None = None
    rounds: int = 1

    def scheduled(self, name, asynchronous=False):
        """Return the Cost of a computation that runs its operations one by one."""
        computation, cost = self.computations[name], Cost()
        for operation in computation.values():
            called_cost, times = self._called(computation, operation, asynchronous)
            own_cost = self._one(computation, operation, asynchronous)
            moved_bytes = operation_bytes(self.computations, computation, operation)
            # A fusion is one operation, so its products and its traffic count together
            flops = own_cost.flops.total() + (
                called_cost.flops.total() if operation.kind == "fusion" else 0
            )
            # A collective does not count here: it reads and writes while it sends, and sending
            # takes longer
            is_beside = operation.kind.endswith(HALVES)
            if (flops or moved_bytes) and not is_beside and not own_cost.collectives:
                cost.operations[flops, moved_bytes] += 1
            cost.count += does_work(operation)
            cost.beside_count += does_work(operation) and is_beside and not own_cost.collectives
            cost.add(called_cost, times)
            cost.add(own_cost)
            cost.hbm_bytes += moved_bytes
            if operation.kind not in ("while", "conditional", "call"):
                cost.cycles += _cycles(operation)
        return cost

    def _called(self, computation, operation, asynchronous):
        """Return (Cost, times) of the computations that an operation runs."""
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
        """Return whether parallel.bounded takes a branch only if an expert's buffer overflows."""
        return any(
            f"/{RARE}/" in _scope(operation) for operation in self.computations[name].values()
        )

    def _fused(self, fusion, asynchronous):
        """Return the Cost of a fusion's body, without memory traffic: the fusion counts that."""
        body, cost = self.computations[fusion.called()], Cost()
        # The compiler's name for a TPU's reduce-scatter. In all other fusions a collective overlaps
        # with other work
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
        if addressed := rows_addressed(computation, operation):
            row_bytes, num_rows = addressed
            cost.rows[row_bytes] += num_rows
        keyed_collective = collective_of(
            computation, operation, self.mesh_shape, scatters=scatters, asynchronous=asynchronous
        )
        if keyed_collective:
            cost.collectives = dict([keyed_collective])
        return cost


def _scope(operation):
    """Return the functions, modules and scopes that an operation comes from, joined by slashes."""
    return operation.attribute(r'op_name="([^"]*)"') or ""


def _branches(conditional):
    names_text = conditional.attribute(r"branch_computations=\{([^}]*)\}")
    if names_text:
        return re.findall(r"[\w.\-]+", names_text)
    sides = ("true", "false")
    return [conditional.attribute(rf"{side}_computation=%?([\w.\-]+)") for side in sides]


def _cycles(operation):
    cycles = int(operation.attribute(r'"estimated_cycles":"(\d+)"') or 0)
    return cycles if cycles < NO_ESTIMATE else 0
