"""The memory of freed arrays: reused, or returned to the system."""

import gc
import os
import sys
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest

from deepseek_jax.parallel import host_memory
from deepseek_jax.parallel.host_memory import (
    return_freed_memory,
    return_much_freed_memory,
    zeros_by_page,
)
from tests import warm

MIB = 2**20


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


FAULTS = """
import resource, sys
from deepseek_jax.parallel.host_memory import keep_freed_memory

if sys.argv[1] == "kept in a program":
    # It starts a thread
    from launch.signals import listen
    listen()
if sys.argv[1] != "as it is":
    keep_freed_memory()
import jax, jax.numpy as jnp

double = jax.jit(lambda x: 2 * x)
x = double(jnp.ones(2**24))
for _ in range(5):
    double(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    double(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_is_kept_is_not_mapped_anew():
    """Oracle: the system's count of page faults, over twenty arrays of 64 MiB, allocated and freed in turn.

    Each costs one fault a page of 4 or 2048 KiB. Where freed memory is reused, only an array that is
    allocated before another one is freed costs them.
    """
    faults = {
        how: int(warm.run("-c", FAULTS, how).stdout)
        for how in ("kept", "kept in a program", "as it is")
    }
    assert faults["as it is"] >= 20 * 32, faults
    assert 4 * faults["kept"] < faults["as it is"] > 4 * faults["kept in a program"], faults


COMPILERS = """
import sys
import jax, jax.numpy as jnp
from deepseek_jax.parallel import host_memory
from deepseek_jax.parallel.host_memory import return_compilers_memory, return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

host_memory.LONG = 0.1  # of this program, on a fast machine too

def chain(x):
    for i in range(400):
        x = jnp.sin(x @ x) + jnp.sort(x, axis=i % 2)
    return x

if sys.argv[1] == "returned":
    return_compilers_memory()
jax.jit(chain).lower(jnp.ones((8, 8))).compile()
left = resident()
return_freed_memory()
print(left - resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_what_a_compiler_leaves_is_returned_behind_it():
    """Oracle: the system's count of what one more return frees: almost nothing where memory was returned
    after the compilation, and many times as much where it was not.
    """
    left = {how: int(warm.run("-c", COMPILERS, how).stdout) for how in ("returned", "as it is")}
    assert 4 * left["returned"] < left["as it is"] > 4 * MIB, left


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_arrays_leave_no_memory_behind():
    """Oracle: the system's count: 256 MiB in small arrays, of which all but every hundredth are freed; at
    least three quarters of the memory are returned.
    """
    return_freed_memory()
    before = resident_bytes()
    arrays = [np.ones(2**13, np.float64) for _ in range(4096)]  # 64 KiB: below malloc's own pages
    assert resident_bytes() - before > 250 * MIB
    arrays = arrays[::100]
    gc.collect()
    return_freed_memory(above=2**40)
    assert resident_bytes() - before > 250 * MIB
    return_freed_memory(above=128 * MIB)
    assert resident_bytes() - before < 64 * MIB, len(arrays)


def test_cpu_devices_share_the_hosts_memory_or_its_containers(tmp_path, monkeypatch):
    """Oracle: by hand, for 8 CPU devices: the system's own count, and limits of both control groups."""
    system = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = [tmp_path / "memory.max", tmp_path / "limit_in_bytes"]
    monkeypatch.setattr(host_memory, "CONTAINERS", files)
    assert host_memory.device_bytes() == system // 8
    files[0].write_text("max\n")
    assert host_memory.device_bytes() == system // 8
    files[1].write_text(f"{2**28}\n")
    assert host_memory.device_bytes() == 2**25


def test_other_devices_say_what_they_hold(monkeypatch):
    """Oracle: what the device says; None where it says nothing."""
    for stats, wanted in (({"bytes_limit": 7}, 7), ({}, None), (None, None)):
        device = SimpleNamespace(platform="gpu", memory_stats=lambda stats=stats: stats)
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert host_memory.device_bytes() == wanted


@pytest.fixture
def libc(monkeypatch):
    """glibc, with a heap of which a GiB is free."""
    libc = mock.Mock()
    libc.mallinfo2.return_value = host_memory._MallInfo(fordblks=2**30)
    monkeypatch.setattr(host_memory, "_glibc", lambda: libc)
    return libc


def test_the_heap_keeps_what_is_freed(libc, monkeypatch):
    """Oracle: malloc.h: one arena (-8), nothing mapped (-4), and no end of the heap returned (-1)."""
    host_memory.keep_freed_memory()
    assert libc.mallopt.call_args_list == [
        mock.call(-8, 1),
        mock.call(-4, 0),
        mock.call(-1, 2**31 - 1),
    ]
    monkeypatch.setattr(host_memory, "_glibc", lambda: None)
    host_memory.keep_freed_memory()
    return_freed_memory()


def test_memory_is_returned_where_more_is_free_than_may_be(libc):
    """Oracle: by hand, of a free GiB; of "much" it is just not."""
    for above, times in ((2**30, 0), (2**30 - 1, 1)):
        return_freed_memory(above=above)
        assert libc.malloc_trim.call_count == times
    return_much_freed_memory()
    assert libc.malloc_trim.call_count == 1
    libc.mallinfo2.return_value = host_memory._MallInfo(fordblks=2**30 + 1)
    return_much_freed_memory()
    libc.mallinfo2.return_value = host_memory._MallInfo(fordblks=1)
    return_freed_memory()
    assert libc.malloc_trim.call_args_list == [mock.call(0)] * 3


def test_long_compilations_alone_are_followed_by_a_return(libc, monkeypatch):
    """Oracle: by hand: of a second, of more, and of another event."""
    listeners = []
    name = "register_event_duration_secs_listener"
    monkeypatch.setattr(jax.monitoring, name, listeners.append)
    host_memory.return_compilers_memory()
    (listen,) = listeners
    for event, seconds, times in (
        (host_memory.COMPILED, 1.0, 0),
        (host_memory.COMPILED, 1.5, 1),
        ("/jax/core/compile/jaxpr_trace_duration", 1.5, 1),
    ):
        listen(event, seconds, fun_name="step")
        assert libc.malloc_trim.call_count == times


def test_zeros_take_memory_as_they_are_written():
    """Oracle: the pages that the system counts: of 512 rows of a MiB every eighth is written; huge pages of
    2 MiB would take twice as much. 8 MiB: what else the process does.
    """
    before = resident_bytes()
    zeros = zeros_by_page((512, MIB // 4), np.int32)
    assert not zeros[3].any() and zeros.dtype == np.int32
    zeros[::8] = 7
    assert resident_bytes() - before == pytest.approx(64 * MIB, abs=8 * MIB)
    assert (zeros.sum(1) == np.where(np.arange(512) % 8, 0, 7 * MIB // 4)).all()
    assert zeros_by_page((0, 3), bool).shape == (0, 3)
