"""The roofline's seconds, against a chip of round numbers."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from deepseek_jax.costs.chips import CHIPS, DEVICES, Chip
from deepseek_jax.costs.program import Program
from launch.planning.hlo import Cost
from launch.planning.hlo_collectives import Collective
from launch.planning.records import CompiledProgram
from launch.planning.roofline import (
    Roofline,
    collective_seconds,
    roofline,
    seconds_of,
    share_of_peak,
)
from tests.parallel.slices import grid_of

# Latencies that binary fractions are exact for
CHIP = Chip(
    "round",
    10**9,
    100.0,
    1000.0,
    link=10.0,
    network=1.0,
    peaks={"s8": 2000.0},
    seconds_per_operation=0.125,
    seconds_per_collective=0.5,
)


def torus(topology, **axes):
    """A mesh of these axes over the devices of a slice at the points of its torus, in their order."""
    return Mesh(grid_of(topology).reshape(tuple(axes.values())), tuple(axes))


def cost_of(*operations, collectives=()):
    """The Cost of (label, FLOPs, bytes, times) and of collectives {(kind, axes): Collective}."""
    cost = Cost(collectives=dict(collectives))
    for label, flops, moved, times in operations:
        one = Cost(Counter({label: flops}), Counter(), moved, Counter({(flops, moved): 1}), 1)
        cost.add(one, times)
    return cost


GRID = torus("v5p:4x4x4", slice=1, a=4, b=4, c=4)


@pytest.mark.parametrize(
    ("label", "flops", "moved", "times", "products", "memory", "bound"),
    [
        ("bf16 x bf16", 8000, 400, 1, 8, 4, "products"),
        ("bf16 x bf16", 2000, 400, 3, 6, 12, "memory"),
        # Twice as fast as bfloat16, by the chip's peak
        ("s8 x s8", 8000, 400, 1, 4, 4, "products"),
        # The product of two dtypes, and a dtype without a peak of its own, are bfloat16's
        ("bf16 x s8", 8000, 400, 1, 8, 4, "products"),
        ("f8e4m3fn x f8e4m3fn", 8000, 400, 1, 8, 4, "products"),
        ("f32 x f32", 8000, 400, 1, 8, 4, "products"),
        ("grouped matmul", 8000, 400, 1, 8, 4, "products"),
    ],
)
def test_an_operation_takes_what_binds_it(label, flops, moved, times, products, memory, bound):
    """Oracle: by hand: FLOPs over the operands' peak, bytes over the bandwidth; the larger."""
    seconds = roofline(cost_of((label, flops, moved, times)), CHIP, GRID)
    assert (seconds.products, seconds.memory) == (products, memory)
    assert seconds.operations == max(products, memory)
    assert seconds.at_least == max(products, memory) and seconds.bound == bound
    assert seconds.likely == max(products, memory) + times / 8


def test_products_of_fp8_are_at_the_peak_of_fp8():
    """Oracle: Google's and NVIDIA's numbers: twice bfloat16's on TPU7x, a chip of two JAX devices."""
    chip = CHIPS["tpu7x"]
    device = DEVICES[chip.device_kind]
    cost = cost_of(("f8e4m3fn x f8e4m3fn", 4614e12, 0, 1))
    assert roofline(cost, chip, GRID).products == pytest.approx(1)
    assert roofline(cost, device, GRID).products == pytest.approx(2)
    assert device.hbm_bytes == chip.hbm_bytes // 2


def test_operations_run_one_after_the_other():
    """Oracle: by hand: one bound by products and one by memory: 8 + 12 seconds, where sums alone say 14."""
    cost = cost_of(("bf16 x bf16", 8000, 200, 1), ("bf16 x bf16", 2000, 1200, 1))
    seconds = roofline(cost, CHIP, GRID)
    assert (seconds.products, seconds.memory, seconds.operations) == (10, 14, 20)


ALL_TO_ALL = ("all-to-all", "ragged-all-to-all")


@pytest.mark.parametrize(
    ("kind", "axes", "mesh", "seconds"),
    [
        # 240 bytes over links of 10 bytes a second
        ("all-gather", ("a",), GRID, 12),  # a ring of 4: 2 links
        ("all-reduce", ("a", "b"), GRID, 6),  # two dimensions: 4 links
        ("reduce-scatter", ("x",), torus("v5p:2x4x1", x=2, y=4), 24),  # 2 wide: 1 link
        ("all-gather", ("y",), torus("v5p:2x4x1", x=2, y=4), 24),  # a line: 1 link
        ("all-gather", ("x", "y"), torus("v5p:2x4x1", x=2, y=4), 12),  # 2 links
        ("all-gather", ("x",), torus("v5p:4x4x4", x=64), 4),  # 6 links
        # An axis of 4 that is laid out as 2 x 2: a link along each dimension
        ("all-gather", ("x",), torus("v5p:2x2x1", x=4), 12),
        # To 3 others, of which 2 are a hop away and one two: 4/3 hops on average, 2 links
        *((kind, ("a",), GRID, 16) for kind in ALL_TO_ALL),
        # A ring of 16: 64/15 hops on average; with 4 rows of it, 4 x 64/63 hops along it
        *((kind, ("x",), torus("v5e:16x16", x=16, y=16), 12 * 64 / 15) for kind in ALL_TO_ALL),
        *((kind, ("x",), torus("v5e:16x4", x=64), 48 * 64 / 63) for kind in ALL_TO_ALL),
        ("all-to-all", ("x",), torus("v5p:2x1x1", x=2), 24),  # a hop, one link
        ("collective-permute", ("a",), GRID, 24),  # one link
        ("all-gather", ("y",), torus("v5p:2x1x1", x=2, y=1), 24),  # nobody to send to
        ("all-reduce", ("slice",), GRID, 240),  # the network
        ("all-reduce", ("slice", "a"), GRID, 240),
        ("collective-permute", ("slice",), GRID, 240),
    ],
)
def test_a_collective_uses_the_links_of_its_group(kind, axes, mesh, seconds):
    """Oracle: by hand, from the shape of the group on the torus."""
    assert collective_seconds(kind, axes, 240, CHIP, mesh) == pytest.approx(seconds)


def test_a_switch_joins_devices_without_coordinates():
    """Oracle: by hand: all bytes over the links of a device, whatever the group."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    for kind in ("all-gather", "all-to-all"):
        assert collective_seconds(kind, ("a", "b"), 240, CHIP, mesh) == 24


# Two gathers of 80 bytes in all over links of 20 bytes a second: 4 seconds, of which some are hidden
GATHERS = ("all-gather", ("a",))


@pytest.mark.parametrize(
    ("asynchronous", "hidden_bytes", "at_least", "likely"),
    [
        # 8 seconds of work and 2 operations of 1/8: nothing is hidden, each gather waits half a second more
        (0, 0, 8, 8.25 + 4 + 2 * 0.5),
        # One of them, 1 second, hides behind the operations
        (1, 20, 8, 8.25 + 3 + 0.5),
        (2, 80, 8, 8.25),
    ],
)
def test_what_is_asynchronous_hides_and_the_rest_waits(
    asynchronous, hidden_bytes, at_least, likely
):
    """Oracle: by hand, of 4000 FLOPs twice at 1000 a second, 0 bytes."""
    gathers = Collective(2, asynchronous, 0, 80, hidden_bytes)
    cost = cost_of(("bf16 x bf16", 4000, 0, 2), collectives=[(GATHERS, gathers)])
    seconds = roofline(cost, CHIP, GRID)
    assert (seconds.at_least, seconds.likely) == (at_least, likely)
    assert (seconds.latency, seconds.collectives) == (2 / 8 + (2 - asynchronous) / 2, 4)


def test_asynchronous_collectives_may_take_longer_than_what_hides_them():
    """Oracle: by hand: 20 seconds of a gather beside 1 of work and its latency, then 2 and a half of another;
    at least the 22 seconds of the links, which bind.
    """
    gathers = Collective(2, 1, 0, 440, 400)
    cost = cost_of(("bf16 x bf16", 1000, 0, 1), collectives=[(GATHERS, gathers)])
    seconds = roofline(cost, CHIP, GRID)
    assert (seconds.at_least, seconds.likely, seconds.bound) == (22, 20 + 2 + 0.5, "collectives")


def test_copies_beside_the_operations_share_their_memory():
    """Oracle: by hand: 4 seconds of operations, half a second of their latency, and of 500 bytes that copies
    move beside them 5 more than the 4 seconds of 400 bytes: the memory's 9 seconds bind. With half a second
    of copies, which have no latency, nothing waits for them.
    """
    for copied, at_least, likely in ((500, 9, 9), (50, 4.5, 4.5)):
        cost = cost_of(("bf16 x bf16", 0, 100, 4))
        cost.add(Cost(hbm_bytes=copied, count=10, beside_count=10))
        seconds = roofline(cost, CHIP, GRID)
        assert (seconds.operations, seconds.latency) == (4, 0.5)
        assert (seconds.at_least, seconds.likely) == (at_least, likely)


def test_many_small_operations_are_bound_by_latency():
    """Oracle: by hand: 80 operations of a second in all, which begin in 10."""
    seconds = roofline(cost_of(("bf16 x bf16", 12.5, 0, 80)), CHIP, GRID)
    assert (seconds.at_least, seconds.likely, seconds.bound) == (1, 11, "latency")


def test_short_rows_take_the_time_to_issue_them():
    """Oracle: by hand: at 100 bytes and 4 rows a second, 10 rows of 10 bytes take 2.5 seconds in place of 1,
    and rows of 50 bytes no more than their bytes do.
    """
    chip = dataclasses.replace(CHIP, seconds_per_row=0.25)
    cost = cost_of(("bf16 x bf16", 0, 300, 1))
    cost.add(Cost(rows=Counter({10: 10, 50: 4})))
    seconds = roofline(cost, chip, GRID)
    assert (seconds.at_least, seconds.likely) == (3, 3 + 0.125 + 1.5)


def test_at_least_is_never_longer_than_likely():
    """Oracle: the definition of a lower bound, for random work; more bytes never take less."""
    rng, last = np.random.default_rng(0), 0.0
    for flops, moved, sent, share in rng.integers(0, 10_000, (20, 4)).tolist():
        gathers = Collective(4, 2, 0, sent, sent * share / 10_000)
        cost = cost_of(("bf16 x bf16", flops, moved, 2), collectives=[(GATHERS, gathers)])
        seconds = roofline(cost, CHIP, GRID)
        assert seconds.at_least <= seconds.likely
        assert seconds.operations >= max(seconds.products, seconds.memory) * (1 - 1e-12)
    for sent in (10, 100, 1000):
        gathers = Collective(1, 0, 0, sent)
        cost = cost_of(("bf16 x bf16", 8000, 400, 1), collectives=[(GATHERS, gathers)])
        assert roofline(cost, CHIP, GRID).likely > last
        last = roofline(cost, CHIP, GRID).likely


def test_a_chip_of_two_devices_starts_an_operation_no_faster():
    """Oracle: the fields: a device's share of a chip has all of its latency."""
    chip = CHIPS["tpu7x"]
    device = chip.device()
    assert device.seconds_per_operation == chip.seconds_per_operation == 0.9e-6
    assert device.seconds_per_collective == chip.seconds_per_collective == 7e-6


def test_a_step_is_its_calls_and_their_tokens():
    """Oracle: by hand: 3 calls of 2 and 2.25 seconds, 100 tokens of 4 and 4.25."""
    two, four = (cost_of(("bf16 x bf16", flops, 0, 2)) for flops in (1000, 2000))
    program = Program("decode", None, (), GRID, 0, 0.0, "", times=3, token_steps=100)
    seconds = seconds_of(program, CompiledProgram(cost=two, token=four), CHIP)
    assert seconds.of_step(program) == (3 * 2 + 100 * 4, 3 * 2.25 + 100 * 4.25)
    assert seconds.main == seconds.token and program.runs == 100
    program = Program("update", None, (), GRID, 0, 0.0, "", times=3)
    seconds = seconds_of(program, CompiledProgram(cost=two), CHIP)
    assert seconds.of_step(program) == (3 * 2, 3 * 2.25)
    assert seconds.main == seconds.call and program.runs == 3
    assert seconds_of(program, CompiledProgram(refusal="too large"), CHIP) is None


def test_an_empty_program_takes_no_time():
    """Oracle: by hand; its share of the peak is not a number."""
    seconds = roofline(Cost(), CHIP, GRID)
    assert seconds == Roofline(0.0, 0.0, 0, 0) and np.isnan(share_of_peak(0, 0.0, CHIP, 1))


def test_the_share_of_the_peak_is_the_models_flops_over_all_devices():
    """Oracle: by hand: 16 devices of 1000 FLOPs a second are half used for 3 seconds."""
    assert share_of_peak(24_000, 3.0, CHIP, 16) == 0.5
