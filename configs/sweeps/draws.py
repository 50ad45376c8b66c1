"""What a sweep's file can build its list of overrides from: grids, and draws that a seed repeats.

    from configs.sweeps.draws import draw, grid, log_uniform, uniform

    def sweep(config):
        return grid({"optimizer.learning_rate": [1e-4, 1e-3], "seed": range(3)})

A draw has three digits, so that the names of runs stay short.
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence


def grid(fields: Mapping):
    """Every combination: {dotted field: its values} -> list of overrides, the last field the fastest."""
    return [
        dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())
    ]


def draw(count: int, fields: Mapping, seed: int = 0):
    """Random overrides: {dotted field: uniform(...), log_uniform(...) or choice(...)} -> list of `count`.

    More of them begin with the same ones: a sweep can be extended. Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"draw: count={count} must be at least 1")
    rng = random.Random(seed)
    return [{name: one(rng) for name, one in fields.items()} for _ in range(count)]


def uniform(low: float, high: float) -> Callable:
    """A draw between two numbers. Raises ValueError where they do not rise."""
    _check_rising(low, high)
    return lambda rng: _rounded(rng.uniform(low, high))


def log_uniform(low: float, high: float) -> Callable:
    """A draw whose logarithm is uniform. Raises ValueError where the numbers do not rise from above 0."""
    if low <= 0:
        raise ValueError(f"log_uniform: low={low} must be above 0")
    _check_rising(low, high)
    return lambda rng: _rounded(math.exp(rng.uniform(math.log(low), math.log(high))))


def choice(values: Sequence) -> Callable:
    """A draw of one of several values."""
    return lambda rng: rng.choice(values)


def _check_rising(low, high):
    if low >= high:
        raise ValueError(f"a draw from low={low} to high={high}: low must be below high")


def _rounded(number):
    return float(f"{number:.3g}")
