"""Threads for simulated devices: what is set, and what XLA does with it."""

import os
from unittest import mock

import pytest

from deepseek_jax.parallel.host_threads import give_devices_threads
from tests import warm

DEVICES = "--xla_force_host_platform_device_count="
COUNT = """
import os
os.environ.pop("NPROC", None)
from pathlib import Path
from deepseek_jax.parallel.host_threads import give_devices_threads
give_devices_threads()
import jax
assert jax.device_count() == 8
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
print(names.count("tf_XLAEigen"))
"""


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        (dict(XLA_FLAGS=f"{DEVICES}8"), "64"),
        # XLA too takes the last of two
        (dict(XLA_FLAGS=f"{DEVICES}2 --xla_other=3 {DEVICES}4"), "32"),
        (dict(XLA_FLAGS=f"{DEVICES}8", NPROC="5"), "5"),
        (dict(XLA_FLAGS=f"{DEVICES}1"), None),
        (dict(), None),
    ],
)
def test_each_simulated_device_has_eight_threads_unless_the_environment_says_otherwise(
    environment, threads
):
    """Oracle: by hand: eight times the devices; one device alone needs none."""
    with mock.patch.dict(os.environ, environment, clear=True):
        give_devices_threads()
        assert os.environ.get("NPROC") == threads


def test_xla_has_as_many_threads():
    """Oracle: the kernel's list of this process's threads, and XLA's name for those of its pool."""
    done = warm.run("-c", COUNT)
    assert done.stdout == "64\n", done.stderr
