"""Seconds of the published programs' collectives as make_mesh places their meshes, and as jax does."""

import re

import pytest

from deepseek_jax.costs.chips import DEVICES
from deepseek_jax.costs.exchange import exchange_of
from deepseek_jax.models import build_model
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.decoding import decoding_mesh
from deepseek_jax.parallel.torus import placement_text
from launch.planning.published import PUBLISHED
from launch.planning.roofline import collective_seconds
from tests.configs import snapshots
from tests.parallel.slices import jax_mesh, slice_of
from tests.parallel.test_placement import cost

LINE = re.compile(r"(?P<kind>\S+) over (?P<axes>.*): [\d,]+ times, (?P<gb>[\d,.]+) GB")


def seconds(name, program, mesh):
    """(Seconds of all collectives of a snapshot on a mesh, those of its exchanges)."""
    chip, total, exchanges = DEVICES[mesh.devices.flat[0].device_kind], 0.0, 0.0
    for line in snapshots.kept(name, program)[1]:
        kind, axes, gigabytes = LINE.fullmatch(line).groups()
        sent = 1e9 * float(gigabytes.replace(",", ""))
        each = collective_seconds(kind, tuple(axes.split(" x ")), sent, chip, mesh)
        total += each
        exchanges += each if kind.endswith("all-to-all") else 0.0
    return total, exchanges


@pytest.mark.parametrize(("name", "program"), snapshots.COMPILED)
def test_no_published_program_takes_longer_than_as_jax_places_it(name, program):
    """Oracle: the order of devices of jax's mesh_utils, with the collectives that the compiler made of the
    program; both by our formula, which test_torus.py holds to links that are counted. With pytest -s it
    prints the table's row.
    """
    devices, config = slice_of(snapshots.slice_name(name)), snapshots.config_of(name)
    exchange = exchange_of(config.get("model", {}))
    mesh = make_mesh(**config.get("mesh", {}).to_dict(), devices=devices, exchange=exchange)
    meshes = [jax_mesh(mesh.shape, devices), mesh]
    if program == "decode":
        heads = build_model(config.model.to_dict()).num_attention_heads
        meshes = [decoding_mesh(one, heads) for one in meshes]
    before, after = (seconds(name, program, one) for one in meshes)
    times = ", ".join(f"{b:.4g} -> {a:.4g}" for b, a in zip(before, after, strict=True))
    print(f"\n{name} {program}: s, of them exchanges: {times}; {placement_text(mesh)}")
    assert after[0] <= before[0] * (1 + 1e-9) and after[1] <= before[1] * (1 + 1e-9)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_no_published_step_has_a_mesh_that_costs_more(row):
    """Oracle: jax's mesh_utils."""
    devices = slice_of(row.topology)
    mesh = make_mesh(**row.mesh, devices=devices)
    assert cost(mesh) <= cost(jax_mesh(mesh.shape, devices)) * (1 + 1e-9)


def test_v3s_exchange_takes_half_as_long_as_jax_places_it():
    """Oracle: by hand: 2,057 GB of which 32/31 count, over 90 GB/s: once in a block of 8 x 4, a ring of 8 and
    lines of 4; twice in 2 x 16.
    """
    devices = slice_of("v5p:8x8x16")
    mesh = make_mesh(data=1, fsdp=32, expert=32, devices=devices)
    once = 2056.89 * 32 / 31 / 90
    assert seconds("pretrain_v3", "stage_1", mesh)[1] == pytest.approx(once, rel=1e-4)
    before = seconds("pretrain_v3", "stage_1", jax_mesh(mesh.shape, devices))
    assert before[1] == pytest.approx(2 * once, rel=1e-4)
