"""This process's own memory, which arrays on a CPU share with everything else."""

import ctypes
import functools


def return_freed_memory():
    """Give what freed arrays leave in malloc's heap back to the system, where the C library is glibc.

    It keeps holes between what still lives, and a phase with arrays of other sizes, an update after a
    rollout, takes fresh memory instead of filling them. Elsewhere it does nothing.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim():
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no glibc; Windows knows no None
        return None
