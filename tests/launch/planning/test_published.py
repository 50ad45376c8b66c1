"""Published steps beside our prediction, by hand."""

import math
from collections import Counter

import pytest
from rich.console import Console

from deepseek_jax.costs.chips import CHIPS
from deepseek_jax.models import build_model
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.settings import build
from launch.planning.hlo import Cost
from launch.planning.hlo_flops import GROUPED
from launch.planning.published import (
    FLOPS_IN_A_CYCLE,
    PUBLISHED,
    by_cycles,
    cells,
    published_table,
)
from launch.planning.report import WIDTH
from launch.planning.roofline import Roofline

# Parameters by the models' papers and names
PARAMETERS = {"DeepSeek-V3": 671e9, "405B": 405e9, "70B": 70e9, "8B": 8e9}
each_row = pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)


def devices(row):
    """JAX devices of the row's topology."""
    name, _, size = row.topology.partition(":")
    return math.prod(map(int, size.split("x"))) * CHIPS[name].devices


def test_the_tokens_of_the_published_steps():
    """Oracle: "total_weights" of MaxText's log (v5p, v6e); or the batch and length of the published table."""
    assert [row.tokens for row in PUBLISHED] == [
        25_165_824,
        2048 * 4096,
        8_388_608,
        1536 * 8192,
        256 * 8192,
        64 * 131_072,
        8_388_608,
        10_485_760,
    ]


def test_the_published_rates_follow_from_tokens_and_seconds():
    """Oracle: the published tokens a second and chip, printed beside the seconds."""
    rates = [542.108, 2425.75, 124.618, 499.77, 2686.98, 963.03, 7207.336, 960.248]
    for row, rate in zip(PUBLISHED, rates, strict=True):
        chips = devices(row) / CHIPS[row.topology.partition(":")[0]].devices
        assert row.tokens / row.seconds / chips == pytest.approx(rate, rel=2e-3)


@each_row
def test_our_mesh_has_the_published_devices_and_its_rows_split(row):
    """Oracle: by hand: a chip of tpu7x is two devices; each part of a mesh that splits rows has as many
    rows of each micro-batch.
    """
    assert math.prod(row.mesh.values()) == devices(row)
    at_once = row.micro_batch_size or row.rows
    parts = devices(row) // row.mesh.get("context", 1)
    assert row.rows % at_once == at_once % parts == 0


@each_row
def test_the_config_is_a_pretraining_of_the_named_model(row):
    """Oracle: the parameters in the model's name, and the row's own batch and length."""
    settings = build(PretrainSettings, row.config(), "config")
    [(_, stage)] = settings.in_order()
    model = build_model(settings.model)
    assert (stage.batch_size, stage.sequence_length) == (row.rows, row.length)
    assert (model.remat, model.num_nextn_predict_layers) == (row.remat, 0)
    [expected] = [number for name, number in PARAMETERS.items() if name in row.name]
    d, f, layers = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    if model.n_routed_experts:
        experts = 3 * d * model.moe_intermediate_size * (model.n_routed_experts + 1)
        assert experts * (layers - 3) == pytest.approx(expected, rel=0.05)
    else:
        heads = model.num_attention_heads + model.grouped.num_key_value_heads
        layer = 3 * d * f + 2 * d * heads * model.grouped.head_dim
        assert layer * layers + 2 * d * model.vocab_size == pytest.approx(expected, rel=0.02)


def test_a_row_of_the_table_by_hand():
    """Oracle: by hand: of 90.668 s published, max(40 + 0.5, 10, 30) + 20 + 1 are 32% too few. By cycles:
    1.75e9 cycles a second for 50 s, and a kernel and a grouped product of 5 s each at the peak, are 11% too
    few. The table is as wide as the page.
    """
    seconds = Roofline(
        products=30.0,
        memory=10.0,
        operations=40.0,
        asynchronous=30.0,
        waited=20.0,
        operation_latency=0.5,
        collective_latency=1.0,
    )
    chip = CHIPS["v5p"]
    peak = chip.flops_per_second
    flops = {"bf16 x bf16": 20 * peak, "splash attention fwd": 5 * peak, GROUPED: 5 * peak}
    cost = Cost(flops=Counter(flops), cycles=50 * peak / 2**18)
    texts = cells(PUBLISHED[0], cost, seconds, chip)
    assert by_cycles(cost, seconds, chip) == pytest.approx(50 + 5 + 5 + 20 + 1)
    assert texts == (
        *("DeepSeek-V3, 512 v5p", "90.7", "50.0", "61.5", "-32%", "81.0", "-11%"),
        *("40.0", "10.0", "30.0", "20.0"),
    )
    table = published_table()
    for row in PUBLISHED:
        table.add_row(*cells(row, cost, seconds, chip))
    console = Console(width=WIDTH, record=True)
    console.print(table)
    lines = console.export_text().splitlines()
    assert all(len(line) <= WIDTH for line in lines) and len(lines) < len(PUBLISHED) + 12
    assert all(any(row.name in line and "81.0" in line for line in lines) for row in PUBLISHED)


@each_row
def test_xlas_clock_is_known_for_each_chip(row):
    """Oracle: clocks of 1.75 GHz (v5p, v6e) and 2.2 GHz (tpu7x), whose matrix units give the peak."""
    name = row.topology.partition(":")[0]
    chip = CHIPS[name].device()
    clock = {"v5p": 1.75e9, "v6e": 1.75e9, "tpu7x": 2.2e9}[name]
    assert chip.flops_per_second / FLOPS_IN_A_CYCLE[chip.device_kind] == pytest.approx(clock, 2e-3)
