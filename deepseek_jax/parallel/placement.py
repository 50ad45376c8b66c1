"""Where a mesh lies on a torus: which part of each side an axis takes.

This depends only on sizes and coordinates, so that it is the same in every process, in a plan and
after a resume.
"""

import dataclasses
import functools
import math

import numpy as np

from deepseek_jax.parallel.rules import MESH_AXES
from deepseek_jax.parallel.torus import Side, Torus, busiest, counts_of, side_load

# Bytes that a device sends over these axes, relative to each other. True: by an exchange; False: in rings.
# Counted in the programs of the published configs (tests/configs/snapshots/collectives)
TRAFFIC = {
    (("expert",), True): 10.0,
    (("context",), True): 4.0,
    (("context",), False): 10.0,
    (("fsdp", "context"), False): 10.0,
    (("tensor",), False): 10.0,
    (("fsdp", "expert"), False): 2.0,
    (("data", "fsdp", "expert", "context"), False): 2.0,
    (("pipeline",), False): 1.0,
}
# Up to this many devices no side is a ring, and an axis over several sides is a snake, as in jax's
# mesh_utils: it makes a ring of 2 x 4 chips
SMALL = 16


def place(torus: Torus, sizes: dict[str, int], exchange: float = 1.0):
    """Choose the device at each place of a mesh, for the least traffic on the busiest links.

    Args:
        torus: The torus of the devices.
        sizes: {axis: size} of the mesh; their product is the number of devices.
        exchange: How much larger the experts' part of TRAFFIC is for this model, see
            costs.exchange.

    Returns:
        int[*sizes], the number of each device.
    """
    numbers = tuple(sizes[axis] for axis in MESH_AXES)
    nested = [one for side in cheapest(torus.sides, numbers, exchange) for one in side]
    # Within an axis the first side is the major one
    order = sorted(range(len(nested)), key=lambda number: (nested[number][0], number))
    split = torus.device_order().reshape([part for _, part in nested])
    placed = split.transpose(order).reshape(numbers)
    if placed.size <= SMALL:
        for axis in range(placed.ndim):
            placed = placed.take(_snake([part for one, part in nested if one == axis]), axis)
    return placed


def _snake(parts):
    """Return the places of a box in an order in which each is next to the one before: int[n]."""
    order = np.arange(1)
    for part in reversed(parts):
        rows = [order if row % 2 == 0 else order[::-1] for row in range(part)]
        order = np.concatenate([row * len(order) + each for row, each in enumerate(rows)])
    return order


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of TRAFFIC with groups of more than one device.

    Attributes:
        axes: For each row, the numbers of its axes.
        devices: int[rows], devices of a group.
        is_exchange: bool[rows].
        weights: float[rows].
    """

    axes: list
    devices: np.ndarray
    is_exchange: np.ndarray
    weights: np.ndarray


@functools.lru_cache(maxsize=4096)
def cheapest(sides: tuple[Side, ...], sizes: tuple[int, ...], exchange: float = 1.0):
    """Find the placement with the least TRAFFIC on its busiest links.

    Among equal placements it is the one that jax's mesh_utils prefers.

    Args:
        sides: The sides of the torus.
        sizes: The size of each of MESH_AXES.
        exchange: See `place`.

    Returns:
        For each side, from its outermost part to the innermost, (number of the axis, length of the
        part).
    """
    rows = _rows(sizes, exchange)
    orders = [_by_parts(side, sizes) for side in sides]
    loads = [
        {parts: _loads(side, each, rows) for parts, each in by_parts.items()}
        for side, by_parts in zip(sides, orders, strict=True)
    ]
    best, least = None, math.inf
    assignments = _assignments([list(each) for each in orders], sizes)
    for chosen in sorted(assignments, key=functools.partial(_as_jax, sides), reverse=True):
        costs = _costs([each[parts] for each, parts in zip(loads, chosen, strict=True)], rows)
        index = np.unravel_index(np.argmin(costs), costs.shape)
        if costs[index] < least:
            least = costs[index]
            best = [each[parts][n] for each, parts, n in zip(orders, chosen, index, strict=True)]
    return tuple(best)


def _rows(sizes, of_experts):
    axes, devices, is_exchange, weights = [], [], [], []
    for (names, exchange), weight in TRAFFIC.items():
        numbers = [MESH_AXES.index(axis) for axis in names]
        size = math.prod(sizes[number] for number in numbers)
        if size > 1:
            axes.append(numbers)
            devices.append(size)
            is_exchange.append(exchange)
            weights.append(weight * (of_experts if names == ("expert",) else 1.0))
    return _Rows(axes, np.array(devices), np.array(is_exchange, bool), np.array(weights))


def _by_parts(side, sizes):
    """Return {the part of each axis: [ways to nest these parts within a side]}."""
    found = {}
    for order in _nested(side.length, sizes):
        # The two chips of a host along a side have to hold the same rows of a batch, or rows that no other
        # host holds (shard.batch_share): an odd innermost part would couple hosts
        if side.length % 2 == 0 and order[-1][1] % 2:
            continue
        parts = dict(order)
        found.setdefault(tuple(parts.get(n, 1) for n in range(len(sizes))), []).append(order)
    return found


def _nested(length, sizes):
    """Yield every way to nest parts of axes within a side: ((axis, part), ...), each axis once."""
    if length == 1:
        yield ()
    for axis, size in enumerate(sizes):
        common = math.gcd(length, size)
        rest = sizes[:axis] + (1,) + sizes[axis + 1 :]
        for part in (n for n in range(2, common + 1) if common % n == 0):
            for inner in _nested(length // part, rest):
                yield ((axis, part), *inner)


def _assignments(sides, sizes):
    """Yield every choice of parts, one from each side, with products that are the sizes."""
    if not sides:
        if max(sizes) == 1:
            yield ()
        return
    for parts in sides[0]:
        if all(size % part == 0 for size, part in zip(sizes, parts, strict=True)):
            rest = tuple(size // part for size, part in zip(sizes, parts, strict=True))
            for others in _assignments(sides[1:], rest):
                yield (parts, *others)


def _as_jax(sides, chosen):
    """Return the key that is largest for the placement that jax's mesh_utils prefers.

    It prefers whole sides for the last axis, then the first sides; then the same for the axis
    before it.
    """
    lengths = [side.length for side in sides]
    axes = list(zip(*chosen, strict=True))
    whole = [
        math.prod(n for n, length in zip(parts, lengths, strict=True) if n == length)
        for parts in axes
    ]
    return list(zip(whole, axes, strict=True))[::-1]


def _loads(side, orders, rows):
    """Return torus.side_load for every order and row: float[orders, rows, 3]."""
    patterns = [
        [tuple((axis in numbers, part) for axis, part in order) for numbers in rows.axes]
        for order in orders
    ]
    found = [[_load(side, pattern) for pattern in each] for each in patterns]
    return np.array(found).reshape(len(orders), -1, 3)


@functools.lru_cache(maxsize=4096)
def _load(side, pattern):
    """Return side_load of the groups that some parts of a side form.

    Args:
        side: The side.
        pattern: ((is in a group, length), ...) for its parts.
    """
    shape = [length for _, length in pattern]
    outer = [n for n, (inside, _) in enumerate(pattern) if not inside]
    inner = [n for n, (inside, _) in enumerate(pattern) if inside]
    groups = np.arange(side.length).reshape(shape).transpose(outer + inner)
    groups = groups.reshape(math.prod(shape[n] for n in outer), -1)
    return side_load(counts_of(groups, side), side)


def _costs(loads, rows):
    """Return the weighted bytes on the busiest links for every choice of orders.

    Args:
        loads: The result of _loads for each side.
        rows: The rows of TRAFFIC.

    Returns:
        float[orders of each side].
    """
    grids = np.indices([len(each) for each in loads], sparse=True)
    shape = np.broadcast_shapes(*(grid.shape for grid in grids))
    wide = [
        np.broadcast_to(each[grid], (*shape, *each.shape[1:]))
        for each, grid in zip(loads, grids, strict=True)
    ]
    # Rounded: the same numbers, added in another order, must not decide between placements
    return np.round(busiest(rows.is_exchange, np.stack(wide, -2), rows.devices) @ rows.weights, 6)
