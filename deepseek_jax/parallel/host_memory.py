"""The memory of this process on the host, which arrays on a CPU share with everything else.

JAX is imported inside functions, because keep_freed_memory must run before any thread starts, and
so before that import.
"""

import contextlib
import ctypes
import math
import mmap
import os
from pathlib import Path

# glibc's malloc.h: what mallopt sets
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# The largest C int, the type of mallopt's arguments
LARGEST = 2**31 - 1
# The event that jax reports after a compilation
COMPILED = "/jax/core/compile/backend_compile_duration"
# Files with a container's memory limit, for both versions of Linux's control groups; "max" is no limit
CONTAINERS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
# A compilation that takes longer, in seconds, returns its memory
LONG = 1.0
# Bytes that may stay free: a small model's step frees and needs this much again and again
MUCH = 2**30


def device_bytes() -> int | None:
    """Return the bytes that arrays may take on one device of this process; None if unknown.

    CPU devices share the host's memory, or the part of it that a container has.
    """
    import jax

    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    if not hasattr(os, "sysconf"):
        return None
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CONTAINERS:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits) // jax.local_device_count()


def keep_freed_memory():
    """Let this process reuse the memory of freed arrays; call it before any thread runs.

    By default glibc maps a large array's memory anew each time and unmaps it afterwards, so that
    each step of training on a CPU pays for hundreds of thousands of page faults. With another C
    library this does nothing.
    """
    libc = _glibc()
    if libc is not None:
        # One arena for all threads: in a second arena, large arrays would be mapped after all
        libc.mallopt(M_ARENA_MAX, 1)
        # Large arrays come from the heap too, and its free end stays with the process
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2. Its field fordblks counts the free bytes of the heap."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def return_freed_memory(above: int = 0):
    """Return the memory of freed arrays from malloc's heap to the system.

    The heap has holes between arrays that are still alive. Work with arrays of other sizes (an
    update after a rollout) takes fresh memory instead of filling the holes. With another C library
    than glibc this does nothing.

    Args:
        above: Bytes that may stay free, because memory that is returned costs page faults when it
            is needed again.
    """
    libc = _glibc()
    if libc is None:
        return
    if hasattr(libc, "mallinfo2"):
        libc.mallinfo2.restype = _MallInfo
        if libc.mallinfo2().fordblks <= above:
            return
    libc.malloc_trim(0)


def return_much_freed_memory():
    """Return freed memory between the parts of a step, if there is enough to be worth the cost.

    The parts of a step have arrays of different sizes, see return_freed_memory.
    """
    return_freed_memory(above=MUCH)


def zeros_by_page(shape: tuple[int, ...], dtype):
    """Return zeros in numpy that take memory page by page, as they are written.

    np.zeros would take pages of 2 MiB, and memory that was freed, whole.
    """
    import numpy as np

    count = math.prod(shape)
    pages = mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype, count).reshape(shape)


def return_compilers_memory():
    """Call return_freed_memory after every long compilation from now on.

    Otherwise the compiler's freed memory, a quarter of a GiB for a training step of 30 layers,
    would stay allocated in addition to the program's own arrays.
    """
    import jax

    def listen(event: str, duration_secs: float, **_: str | int):
        if event == COMPILED and duration_secs > LONG:
            return_freed_memory()

    jax.monitoring.register_event_duration_secs_listener(listen)


def _glibc():
    try:
        libc = ctypes.CDLL(None)
    # Windows does not accept None
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "malloc_trim") else None
