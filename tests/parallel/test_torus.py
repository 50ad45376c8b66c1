"""What collectives ask of a torus's links, by hand and by counting bytes on a graph of links."""

import itertools
from collections import Counter

import numpy as np
import pytest
from jax.sharding import Mesh

from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.torus import CORE_LINKS, Side, busiest_link, placement_text, torus_of
from tests.parallel.slices import Device, grid_of, slice_of


def nested(topology, *sides):
    """A Mesh of axes named by letters. sides: for each, its parts from the outermost on, as "a2 b4"."""
    parts = [(part[0], int(part[1:])) for side in sides for part in side.split()]
    order = sorted(range(len(parts)), key=lambda n: (parts[n][0], n))
    grid = grid_of(topology).reshape([size for _, size in parts]).transpose(order)
    sizes = {}
    for name, size in sorted(parts, key=lambda part: part[0]):
        sizes[name] = sizes.get(name, 1) * size
    return Mesh(grid.reshape(tuple(sizes.values())), tuple(sizes))


V5P = {"2 x 16": ("b4 a2", "b8", "a16"), "4 x 2 x 4": ("b2 a4", "b4 a2", "b4 a4")}


@pytest.mark.parametrize(("block", "parts"), [("2 x 16", 2), ("4 x 2 x 4", 1)])
def test_an_exchange_of_32_chips_of_v5p_halves_in_a_block(block, parts):
    """Oracle: by hand: half of a device's bytes cross the middle. On a ring of 16 those of 8 devices over 2
    links; in a line of 4 those of 2 over 1. What a device sends is 31 of its 32 parts.
    """
    mesh = nested("v5p:8x8x16", *V5P[block])
    assert busiest_link("ragged-all-to-all", ("a",), mesh) * 31 / 32 == pytest.approx(parts)


@pytest.mark.parametrize(
    ("topology", "sides", "axes", "exchange", "gather"),
    [
        # Rings of 4 and 8: 2 links; the whole slice: 6
        ("v5p:4x4x4", ("a4", "b4", "c4"), "a", 1 / 2, 1 / 2),
        ("v5p:8x8x8", ("a8", "b8", "c8"), "a", 1, 1 / 2),
        ("v5p:4x4x4", ("a4", "b4", "c4"), "abc", 1 / 2, 1 / 6),
        # Half of a ring, and a side of a slice without rings, are lines: 1 link
        ("v5p:8x8x8", ("b2 a4", "c8", "d8"), "a", 1, 1),
        ("v5e:4x4", ("a4", "b4"), "a", 1, 1),
        ("v5p:2x4x4", ("a2", "b4", "c4"), "b", 1, 1),
        ("v5e:2x4", ("a2", "b4"), "ab", 1, 1 / 2),
        # A side of 16 is a ring on v5e too, one of 8 is not
        ("v5e:8x16", ("a8", "b16"), "b", 2, 1 / 2),
        ("v5e:8x16", ("a8", "b16"), "a", 2, 1),
        # Every second place of a ring: both links, which two groups share; of a line: one
        ("v5p:8x8x8", ("a4 b2", "c8", "d8"), "a", 1, 1),
        ("v5e:8x8", ("a4 b2", "c8"), "a", 2, 2),
        # The same on two sides: of each link a group has half
        ("v5p:8x8x8", ("a4 b2", "a4 c2", "d8"), "a", 1, 1 / 2),
        # Opposite places of a ring of 4: a half of each byte goes either way
        ("v5p:4x4x4", ("a2 b2", "c4", "d4"), "a", 1 / 2, 1),
        # A side that 4 groups share holds up what comes in over the free one: 3 of 7 parts over 1/4 link
        ("v5e:16x2", ("c1 a4 b4", "a2"), "a", 2, 12 / 7 / 2),
        # The cores of a chip
        ("tpu7x:2x2x1", ("a2", "b2", "c1", "d2"), "d", 1 / 2 / CORE_LINKS, 1 / CORE_LINKS),
    ],
)
def test_the_links_of_a_group(topology, sides, axes, exchange, gather):
    """Oracle: by hand: of the bytes of a device, its own part included, those on the busiest link of an
    exchange; of what it sends in a ring, those on each link.
    """
    mesh = nested(topology, *sides)
    size = np.prod([mesh.shape[axis] for axis in axes])
    found = busiest_link("all-to-all", tuple(axes), mesh) * (size - 1) / size
    assert found == pytest.approx(exchange)
    for kind in ("all-gather", "reduce-scatter", "all-reduce"):
        assert busiest_link(kind, tuple(axes), mesh) == pytest.approx(gather)


def steps(here, there, side):
    """[(share, [places passed])] of the shortest ways along a side."""
    if not side.is_ring:
        step = 1 if there > here else -1
        return [(1.0, list(range(here, there + step, step)))]
    up = (there - here) % side.length
    ways = [(up, 1), (side.length - up, -1)]
    best = min(length for length, _ in ways)
    ways = [way for way in ways if way[0] == best]
    return [
        (1 / len(ways), [(here + step * n) % side.length for n in range(length + 1)])
        for length, step in ways
    ]


def routed(mesh, axes, torus):
    """Bytes on the busiest link where every device sends a byte to its group in equal parts, first along the
    first side.
    """
    where = dict(zip(mesh.devices.flat, torus.positions.tolist(), strict=True))
    numbers = [mesh.axis_names.index(axis) for axis in axes]
    groups = np.moveaxis(mesh.devices, numbers, range(len(numbers)))
    groups = groups.reshape(np.prod([mesh.shape[a] for a in axes]), -1).T
    links = Counter()
    for group in groups:
        for source, target in itertools.permutations(group, 2):
            at = list(where[source])
            for d, side in enumerate(torus.sides):
                if at[d] == where[target][d]:
                    continue
                for share, way in steps(at[d], where[target][d], side):
                    for a, b in itertools.pairwise(way):
                        links[d, *at[:d], *at[d + 1 :], a, b] += share / len(group) / side.links
                at[d] = where[target][d]
    return max(links.values())


PLACED = [
    ("v5p:4x4x4", ("a4", "b2 a2", "b4"), ("a", "b", "ab")),
    ("v5p:4x4x4", ("b2 a2", "a2 b2", "c4"), ("a", "b", "c", "ac", "bc")),
    ("v5p:8x4x4", ("a2 c2 b2", "b4", "c4"), ("a", "b", "c")),
    ("v5p:8x4x4", ("c4 a2", "a2 b2", "b2 c2"), ("a", "b", "c")),
    ("v5e:4x8", ("a2 b2", "b4 a2"), ("a", "b", "ab")),
    ("v5e:4x8", ("a2 b2", "a2 c2 b2"), ("a", "b", "c")),
    ("tpu7x:2x2x1", ("a2", "b2", "c1", "a2"), ("a", "b")),
]


@pytest.mark.parametrize(("topology", "sides", "groups"), PLACED)
def test_an_exchange_is_as_long_as_the_busiest_link_of_shortest_ways(topology, sides, groups):
    """Oracle: a graph of all links, on which every byte of every group goes its shortest way."""
    mesh = nested(topology, *sides)
    torus = torus_of(tuple(mesh.devices.flat))
    for axes in groups:
        size = np.prod([mesh.shape[axis] for axis in axes])
        found = busiest_link("all-to-all", tuple(axes), mesh) * (size - 1) / size
        assert found == pytest.approx(routed(mesh, axes, torus)), axes


def cut_bytes(groups, torus):
    """(bytes of an exchange, shards of a gather) over a link of the fullest cut: of all sets of neighbouring
    places along a side, by the edges of the graph that leave the set.
    """
    exchange = gather = 0.0
    for d, side in enumerate(torus.sides):
        rows = len(torus.positions) // side.length
        for first, size in itertools.product(range(side.length), range(1, side.length)):
            if first + size > side.length:
                continue
            inside = set(range(first, first + size))
            edges = [(p, p + 1) for p in range(side.length - 1)]
            edges += [(side.length - 1, 0)] if side.is_ring else []
            cut = sum((a in inside) != (b in inside) for a, b in edges) * rows * side.links
            held = [sum(torus.positions[n][d] in inside for n in group) for group in groups]
            rest = [len(group) - n for group, n in zip(groups, held, strict=True)]
            both = [(n, m) for n, m in zip(held, rest, strict=True) if n and m]
            exchange = max(exchange, sum(n * m / (n + m) for n, m in both) / cut)
            gather = max(gather, sum(max(n, m) for n, m in both) / cut)
    return exchange, gather


@pytest.mark.parametrize("topology", ["v5p:4x4x4", "v5e:4x4", "v5e:16x2", "tpu7x:2x2x2"])
def test_no_cut_of_the_torus_is_fuller_than_the_busiest_link(topology):
    """Oracle: all cuts across a side, edge by edge, for groups of devices in any order."""
    devices = slice_of(topology)
    for seed in range(3):
        placed = np.random.default_rng(seed).permutation(grid_of(topology).ravel()).reshape(-1, 4)
        mesh = Mesh(placed, ("a", "b"))
        torus = torus_of(tuple(placed.flat))
        exchange, gather = cut_bytes(np.arange(len(devices)).reshape(-1, 4), torus)
        assert busiest_link("all-to-all", ("b",), mesh) * 3 / 4 == pytest.approx(exchange)
        assert busiest_link("all-gather", ("b",), mesh) >= gather / 3 * (1 - 1e-12)


def test_a_torus_has_the_rings_of_its_kind_of_chip():
    """Oracle: Google's pages: v5p's sides are rings from 4 x 4 x 4 on, v5e's where they are 16 long."""
    sides = {
        "v5p:4x4x8": (Side(4, True), Side(4, True), Side(8, True)),
        "v5p:2x4x4": (Side(2), Side(4), Side(4)),
        "v5e:8x16": (Side(8), Side(16, True)),
        "v6e:16x16": (Side(16, True), Side(16, True)),
        "tpu7x:2x2x1": (Side(2), Side(2), Side(2, links=CORE_LINKS)),
        "v5e:1x1": (),
    }
    for topology, expected in sides.items():
        assert torus_of(tuple(slice_of(topology))).sides == expected


def test_devices_that_fill_no_box_have_no_torus():
    """Oracle: by hand: a chip is missing; two slices have each coordinate twice."""
    devices = slice_of("v5p:2x2x2")
    assert torus_of(tuple(devices[:-1])) is None
    assert torus_of((*devices, *slice_of("v5p:2x2x2", 1))) is None
    assert torus_of((*devices[:-1], Device((3, 3, 3)))) is None


def test_a_placement_is_said_in_places_along_each_side():
    """Oracle: by hand."""
    text = "a 4 x 2 x 4, b 2 x 4 x 4 of 8 x 8 x 16"
    assert placement_text(nested("v5p:8x8x16", *V5P["4 x 2 x 4"])) == text
    assert placement_text(make_mesh()) == ""
    two = make_mesh(
        slices=2, data=1, expert=8, devices=slice_of("v5e:2x4") + slice_of("v5e:2x4", 1)
    )
    assert placement_text(two) == "expert 2 x 4 of 2 x 4"
    assert placement_text(nested("v5e:2x4", "a2", "b4")) == "a 2 x 1, b 1 x 4 of 2 x 4"


def test_devices_without_a_torus_and_neighbours_share_no_link():
    """Oracle: by hand: a switch joins CPU devices, one alone sends nothing, a permute is to neighbours."""
    assert busiest_link("all-gather", ("data",), make_mesh()) == 1
    mesh = nested("v5e:4x4", "a4", "b4")
    assert busiest_link("collective-permute", ("a",), mesh) == 1
    assert busiest_link("all-gather", (), mesh) == 1
    assert busiest_link("all-to-all", ("a",), mesh) > 1
