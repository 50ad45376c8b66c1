"""Time that grows no faster than the length of a text, on a machine of any speed and load."""

import time
from collections.abc import Callable

# The longer text is so many times the shorter one. Linear time is so many times longer, quadratic time its
# square: the bound is in the middle, four times from both
TIMES, BOUND = 16, 64
TRIES = 3


def is_linear(call: Callable, text_of: Callable, length: int = 100_000):
    """Whether a call of text_of(length) takes at most BOUND times the CPU time of one TIMES shorter.

    text_of: from about how many characters to a text. The best of TRIES counts: what else runs on a machine
    makes some calls slower, and none faster.
    """
    short, text = text_of(length // TIMES), text_of(length)
    least = min(_cpu_seconds(call, short) for _ in range(TRIES))
    return any(_cpu_seconds(call, text) <= BOUND * least for _ in range(TRIES))


def copies(piece: str):
    """text_of for is_linear: copies of a piece."""
    return lambda length: piece * (length // len(piece))


def _cpu_seconds(call, text):
    began = time.process_time()
    call(text)
    return time.process_time() - began
