"""Rows of a batch that other processes have, moved to the devices that read them."""

import jax
import numpy as np
import pytest

from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.owned_rows import put_owned, rows_per_device
from deepseek_jax.parallel.processes import from_owners
from deepseek_jax.parallel.shard import put_share
from tests.processes import run_two

TWO = """
import sys
import jax
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from tests.parallel.test_owned_rows import check_numbers, moved_as_put
for owners in ([1, 0, 0, 1, 1, 1, 0, 1], [1] * 7 + [0]):
    moved_as_put(owners)
    check_numbers(owners)
print("moved", flush=True)
"""


def batch_of(count):
    """Rows of every dtype, with -0.0, infinities, NaN and 2**-140, which sums of floats might change."""
    rng = np.random.default_rng(0)
    logprobs = rng.normal(size=(count, 6)).astype(np.float32)
    logprobs[:, :4] = -0.0, -np.inf, np.nan, 2.0**-140
    ids = rng.integers(-(2**31), 2**31 - 1, (count, 6)).astype(np.int32)
    return {"ids": ids, "logprobs": logprobs, "mask": rng.random((count, 6)) < 0.5}


def moved_as_put(owners):
    """Assert that moved rows are the ones that put_share puts, bit by bit; rows of others are unknown."""
    owners = np.array(owners)
    for sizes in (
        dict(data=2, fsdp=2, context=2),
        dict(expert=4, tensor=2),
        dict(data=1, pipeline=2, fsdp=4),
    ):
        mesh, whole = make_mesh(**sizes), batch_of(len(owners))
        own = {name: np.copy(array) for name, array in whole.items()}
        for array in own.values():
            array[owners != jax.process_index()] = 0
        wanted, found = put_share(mesh, whole), put_owned(mesh, own, owners)
        for name, array in wanted.items():
            assert found[name].dtype == array.dtype and found[name].sharding == array.sharding
            for one, other in zip(
                array.addressable_shards, found[name].addressable_shards, strict=True
            ):
                assert one.index == other.index and one.device == other.device
                one, other = (np.asarray(shard.data).view(np.uint8) for shard in (one, other))
                np.testing.assert_array_equal(one, other)


def check_numbers(owners):
    """Assert that every process gets the numbers of all, of which it knew its own."""
    owners, numbers = np.array(owners), batch_of(len(owners))
    counts, marks = numbers["ids"][:, 0], numbers["logprobs"][:, 4]
    known = owners == jax.process_index()
    found = from_owners(owners, np.where(known, counts, 7), np.where(known, marks, 7))
    for array, wanted in zip(found, (counts, marks), strict=True):
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("rows", [8, 24])
def test_the_rows_of_one_process_are_moved_as_they_would_be_put(rows):
    """Oracle: put_share, bit by bit, on meshes of eight devices."""
    moved_as_put([0] * rows)


def test_two_processes_give_each_other_their_rows():
    """Oracle: put_share of the whole batch, bit by bit; the numbers of all rows."""
    statuses, outputs = run_two(TWO, xla_flags="--xla_force_host_platform_device_count=4")
    assert statuses == [0, 0], "\n".join(outputs)
    assert all("moved" in output for output in outputs)


def test_numbers_that_every_process_has_are_not_sent():
    """Oracle: by hand."""
    numbers = np.arange(3)
    assert from_owners(None, numbers)[0] is numbers


@pytest.mark.parametrize(
    "rows, devices, width",
    [([8], [8], 1), ([9], [8], 2), ([0, 8], [4, 4], 2), ([5, 9], [4, 4], 4), ([3], [4, 4], 1)],
)
def test_devices_have_room_for_the_most_rows_of_any_process(rows, devices, width):
    """Oracle: by hand: of 9 rows on 4 devices one has 3, and widths are powers of two."""
    assert rows_per_device(np.array(rows), np.array(devices)) == width
