"""Published steps beside our prediction, by hand."""

import math
import re

import numpy as np
import pytest
from rich.console import Console

from deepseek_jax.costs.chips import CHIPS
from launch.planning.published import DIFFERENT, LEFT_OUT, PUBLISHED, published_table
from launch.planning.roofline import Roofline


def test_the_tokens_of_the_published_steps():
    """Oracle: MaxText's log, "total_weights: 25165824"; 256 devices x per_device_batch_size=8 x 4,096."""
    assert [row.tokens for row in PUBLISHED] == [25_165_824, 8_388_608]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.topology)
def test_our_mesh_has_the_published_devices_and_its_rows_split(row):
    """Oracle: by hand: a chip of tpu7x is two devices; each device has as many rows of each micro-batch."""
    name, _, size = row.topology.partition(":")
    devices = math.prod(map(int, size.split("x"))) * CHIPS[name].devices
    assert math.prod(row.mesh.values()) == devices
    assert row.rows % row.micro_batch_size == row.micro_batch_size % devices == 0


class Stub:
    """What the table reads of a Program: 37e9 x 6 FLOPs of each of 25,165,824 tokens on 512 devices."""

    flops = 37e9 * 6 * 25_165_824
    mesh = np.zeros((16, 32))


def test_the_factor_and_mfu_of_a_prediction():
    """Oracle: by hand: 90.668 s / 40 s; 37e9 x 6 x 25,165,824 / (90.668 x 512 x 459e12). What lies between
    the two times is listed whole.
    """
    assert PUBLISHED[0].factor(40.0) == 90.668 / 40
    seconds = Roofline(
        products=30.0, memory=10.0, operations=40.0, waited=9.0, collective_latency=1.0
    )
    console = Console(width=200, record=True)
    console.print(published_table(PUBLISHED[0], Stub, seconds, CHIPS["v5p"]))
    text = console.export_text()
    assert "90.67 s, MFU 26.2%" in text
    assert "40.00 s, MFU 59.4%; published is 2.27 times that" in text
    assert "50.00 s, MFU 47.5%; published is 1.81 times that" in text
    rows = re.findall(r"(left out|different) +│ (.+?) +│", text)
    assert rows == [("left out", line) for line in LEFT_OUT] + [
        ("different", line) for line in DIFFERENT
    ]
