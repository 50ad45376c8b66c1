"""This process's own memory, which arrays on a CPU share with everything else."""

import ctypes

import jax

# glibc's malloc.h: what mallopt sets
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
LARGEST = 2**31 - 1  # a C int
COMPILED = "/jax/core/compile/backend_compile_duration"  # the event that jax tells of
LONG = 1.0  # seconds


def keep_freed_memory():
    """Let what freed arrays leave serve the next ones, where the C library is glibc; before any thread runs.

    Its default is to map a large array's memory anew each time and to unmap it after, so that each step of
    a CPU's training pays for hundreds of thousands of page faults. Elsewhere it does nothing.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(M_ARENA_MAX, 1)  # another thread's own heap would map large arrays after all
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)


def return_freed_memory():
    """Give what freed arrays leave in malloc's heap back to the system, where the C library is glibc.

    It keeps holes between what still lives, and a phase with arrays of other sizes, an update after a
    rollout, takes fresh memory instead of filling them. Elsewhere it does nothing.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def return_compilers_memory():
    """From now on, return_freed_memory behind every long compilation: what the compiler leaves, a quarter of
    a GiB for a training step of 30 layers, would stand beside the program's own arrays.
    """

    def listen(event, duration, **_):
        if event == COMPILED and duration > LONG:
            return_freed_memory()

    jax.monitoring.register_event_duration_secs_listener(listen)


def _glibc():
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows knows no None
        return None
    return libc if hasattr(libc, "malloc_trim") else None
