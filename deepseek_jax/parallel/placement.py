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
# How parts of axes nest within a side, from the outermost to the innermost: (number of the axis, length)
Nesting = tuple[tuple[int, int], ...]


def place(torus: Torus, mesh_shape: dict[str, int], exchange: float = 1.0):
    """Choose the device at each place of a mesh, for the least traffic on the busiest links.

    Args:
        torus: The torus of the devices.
        mesh_shape: {axis: size} of the mesh; their product is the number of devices.
        exchange: How much larger the experts' part of TRAFFIC is for this model, see
            costs.exchange.

    Returns:
        int[*sizes], the number of each device.
    """
    axis_sizes = tuple(mesh_shape[axis] for axis in MESH_AXES)
    nested_parts = [pair for side in cheapest(torus.sides, axis_sizes, exchange) for pair in side]
    # Within an axis the first side is the major one
    order = sorted(range(len(nested_parts)), key=lambda number: (nested_parts[number][0], number))
    devices_by_part = torus.device_order().reshape([part for _, part in nested_parts])
    device_numbers = devices_by_part.transpose(order).reshape(axis_sizes)
    if device_numbers.size <= SMALL:
        for axis in range(device_numbers.ndim):
            device_numbers = device_numbers.take(
                _snake([part for part_axis, part in nested_parts if part_axis == axis]), axis
            )
    return device_numbers


def _snake(lengths):
    """Return the places of a box in an order in which each is next to the one before: int[n]."""
    order = np.arange(1)
    for length in reversed(lengths):
        rows = [order if row % 2 == 0 else order[::-1] for row in range(length)]
        order = np.concatenate([row * len(order) + row_order for row, row_order in enumerate(rows)])
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

    axes: list[list[int]]
    devices: np.ndarray
    is_exchange: np.ndarray
    weights: np.ndarray


@functools.lru_cache(maxsize=4096)
def cheapest(sides: tuple[Side, ...], axis_sizes: tuple[int, ...], exchange: float = 1.0):
    """Find the placement with the least TRAFFIC on its busiest links.

    Among equal placements it is the one that jax's mesh_utils prefers.

    Args:
        sides: The sides of the torus.
        axis_sizes: The size of each of MESH_AXES.
        exchange: See `place`.

    Returns:
        For each side, from its outermost part to the innermost, (number of the axis, length of the
        part).
    """
    rows = _rows(axis_sizes, exchange)
    orders = [_by_parts(side, axis_sizes) for side in sides]
    loads = [
        {parts: _loads(side, side_orders, rows) for parts, side_orders in by_parts.items()}
        for side, by_parts in zip(sides, orders, strict=True)
    ]
    best: list[Nesting] = []
    least_cost = math.inf
    assignments = _assignments([list(side_orders) for side_orders in orders], axis_sizes)
    for chosen_parts in sorted(assignments, key=functools.partial(_as_jax, sides), reverse=True):
        costs = _costs(
            [side_loads[parts] for side_loads, parts in zip(loads, chosen_parts, strict=True)], rows
        )
        index = np.unravel_index(np.argmin(costs), costs.shape)
        if costs[index] < least_cost:
            least_cost = costs[index]
            best = [
                side_orders[parts][n]
                for side_orders, parts, n in zip(orders, chosen_parts, index, strict=True)
            ]
    return tuple(best)


def _rows(axis_sizes, exchange_factor):
    axes, devices, is_exchange, weights = [], [], [], []
    for (names, exchange), weight in TRAFFIC.items():
        axis_numbers = [MESH_AXES.index(axis) for axis in names]
        group_size = math.prod(axis_sizes[number] for number in axis_numbers)
        if group_size > 1:
            axes.append(axis_numbers)
            devices.append(group_size)
            is_exchange.append(exchange)
            weights.append(weight * (exchange_factor if names == ("expert",) else 1.0))
    return _Rows(axes, np.array(devices), np.array(is_exchange, bool), np.array(weights))


def _by_parts(side, axis_sizes):
    """Return {the part of each axis: [ways to nest these parts within a side]}."""
    orders_by_parts: dict[tuple[int, ...], list[Nesting]] = {}
    for order in _nested(side.length, axis_sizes):
        # The two chips of a host along a side have to hold the same rows of a batch, or rows that no other
        # host holds (shard.batch_share): an odd innermost part would couple hosts
        if side.length % 2 == 0 and order[-1][1] % 2:
            continue
        part_by_axis = dict(order)
        orders_by_parts.setdefault(
            tuple(part_by_axis.get(n, 1) for n in range(len(axis_sizes))), []
        ).append(order)
    return orders_by_parts


def _nested(length, axis_sizes):
    """Yield every way to nest parts of axes within a side: ((axis, part), ...), each axis once."""
    if length == 1:
        yield ()
    for axis, size in enumerate(axis_sizes):
        common_factor = math.gcd(length, size)
        inner_sizes = axis_sizes[:axis] + (1,) + axis_sizes[axis + 1 :]
        for part in (n for n in range(2, common_factor + 1) if common_factor % n == 0):
            for inner in _nested(length // part, inner_sizes):
                yield ((axis, part), *inner)


def _assignments(sides, axis_sizes):
    """Yield every choice of parts, one from each side, with products that are the sizes."""
    if not sides:
        if max(axis_sizes) == 1:
            yield ()
        return
    for parts in sides[0]:
        if all(size % part == 0 for size, part in zip(axis_sizes, parts, strict=True)):
            remaining_sizes = tuple(
                size // part for size, part in zip(axis_sizes, parts, strict=True)
            )
            for other_parts in _assignments(sides[1:], remaining_sizes):
                yield (parts, *other_parts)


def _as_jax(sides, chosen_parts):
    """Return the key that is largest for the placement that jax's mesh_utils prefers.

    It prefers whole sides for the last axis, then the first sides; then the same for the axis
    before it.
    """
    lengths = [side.length for side in sides]
    parts_by_axis = list(zip(*chosen_parts, strict=True))
    whole_sides = [
        math.prod(part for part, length in zip(parts, lengths, strict=True) if part == length)
        for parts in parts_by_axis
    ]
    return list(zip(whole_sides, parts_by_axis, strict=True))[::-1]


def _loads(side, orders, rows):
    """Return torus.side_load for every order and row: float[orders, rows, 3]."""
    patterns = [
        [tuple((axis in numbers, part) for axis, part in order) for numbers in rows.axes]
        for order in orders
    ]
    loads = [[_load(side, pattern) for pattern in row_patterns] for row_patterns in patterns]
    return np.array(loads).reshape(len(orders), -1, 3)


@functools.lru_cache(maxsize=4096)
def _load(side, pattern):
    """Return side_load of the groups that some parts of a side form.

    Args:
        side: The side.
        pattern: ((is in a group, length), ...) for its parts.
    """
    shape = [length for _, length in pattern]
    outer_parts = [n for n, (is_in_group, _) in enumerate(pattern) if not is_in_group]
    inner_parts = [n for n, (is_in_group, _) in enumerate(pattern) if is_in_group]
    groups = np.arange(side.length).reshape(shape).transpose(outer_parts + inner_parts)
    groups = groups.reshape(math.prod(shape[n] for n in outer_parts), -1)
    return side_load(counts_of(groups, side), side)


def _costs(loads, rows):
    """Return the weighted bytes on the busiest links for every choice of orders.

    Args:
        loads: The result of _loads for each side.
        rows: The rows of TRAFFIC.

    Returns:
        float[orders of each side].
    """
    order_grids = np.indices([len(side_loads) for side_loads in loads], sparse=True)
    shape = np.broadcast_shapes(*(order_numbers.shape for order_numbers in order_grids))
    spread_loads = [
        np.broadcast_to(side_loads[order_numbers], (*shape, *side_loads.shape[1:]))
        for side_loads, order_numbers in zip(loads, order_grids, strict=True)
    ]
    # Rounded: the same numbers, added in another order, must not decide between placements
    return np.round(
        busiest(rows.is_exchange, np.stack(spread_loads, -2), rows.devices) @ rows.weights, 6
    )
