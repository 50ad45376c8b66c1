"""Memory in the metrics. The statistics are those of fake devices: a CPU has none."""

import dataclasses

import jax
import pytest

from deepseek_jax.training import memory
from deepseek_jax.training.memory import memory_metrics
from tests.processes import run_two

GIB = 2**30


@dataclasses.dataclass
class Chip:
    """The part of jax.Device that is read."""

    id: int
    peak: float
    in_use: float

    def memory_stats(self):
        return {
            "peak_bytes_in_use": int(self.peak * GIB),
            "bytes_in_use": int(self.in_use * GIB),
            "num_allocs": 3,
        }


def test_every_device_has_its_peak_and_what_it_uses_now():
    """Oracle: by hand, of two devices."""
    metrics = memory_metrics([Chip(0, 12.5, 3.25), Chip(7, 11.0, 0.0)])
    assert metrics.pop("host_peak_gib") > 0
    assert metrics == {
        "device_0_peak_gib": 12.5,
        "device_0_in_use_gib": 3.25,
        "device_7_peak_gib": 11.0,
        "device_7_in_use_gib": 0.0,
    }


def test_of_many_devices_the_fullest_and_the_emptiest_are_named():
    """Oracle: by hand: 100 devices, where number 42 has the most and number 17 the least."""
    chips = [Chip(i, 2.0 + (i == 42) - (i == 17), 1.0 + (i == 17) - (i == 42)) for i in range(100)]
    metrics = memory_metrics(chips)
    del metrics["host_peak_gib"]
    assert metrics == {
        "largest_peak_gib": 3.0,
        "largest_peak_device": 42.0,
        "smallest_peak_gib": 1.0,
        "smallest_peak_device": 17.0,
        "largest_in_use_gib": 2.0,
        "largest_in_use_device": 17.0,
        "smallest_in_use_gib": 0.0,
        "smallest_in_use_device": 42.0,
    }
    assert len(memory_metrics(chips[: memory.MOST_DEVICES])) == 1 + 2 * memory.MOST_DEVICES


def test_devices_that_report_nothing_are_left_out():
    """Oracle: this process's CPU devices, whose memory_stats is None; only its own peak is left."""
    assert jax.devices()[0].memory_stats() is None
    assert memory_metrics().keys() == {"host_peak_gib"}


TWO_PROCESSES = """
import sys
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
from deepseek_jax.training.memory import memory_metrics
from tests.training.test_memory import Chip
own = [Chip(2 * jax.process_index() + i, 4.0 + jax.process_index(), 1.0 * i) for i in range(2)]
metrics = memory_metrics(own)
del metrics["host_peak_gib"]
print("read", sorted(metrics.items()), flush=True)
"""


@pytest.mark.slow
def test_the_devices_of_all_processes_are_read():
    """Oracle: by hand: two devices in each of two processes; both processes read the same."""
    codes, outputs = run_two(TWO_PROCESSES)
    assert codes == [0, 0], outputs
    peaks = {f"device_{i}_peak_gib": 4.0 + i // 2 for i in range(4)}
    in_use = {f"device_{i}_in_use_gib": 1.0 * (i % 2) for i in range(4)}
    for output in outputs:
        assert f"read {sorted((peaks | in_use).items())}" in output
