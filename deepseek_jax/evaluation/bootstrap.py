"""Intervals from resampled problems: several samples of one problem are not independent evidence."""

import numpy as np

from deepseek_jax.evaluation.accuracy import wilson_interval

RESAMPLES = 10_000
# Resampled numbers in memory at once
DRAWS_AT_ONCE = 2**20


def bootstrap_interval(values, seed: int = 0):
    """The 95% percentile bootstrap interval of a mean (Efron and Tibshirani, 1993, chapter 13).

    It draws as many problems as there are, with replacement, RESAMPLES times, and takes the middle 95% of the
    means. values: numbers [p], finite, one per problem, such as the mean of its samples. With few problems,
    ten or so, the interval is too narrow. Returns (mean, low, high). Raises ValueError for fewer than two
    values and for NaN.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs 2 problems in a row, given shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.sum(~np.isfinite(values))} of {len(values)} values are not finite")
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    rows = max(1, DRAWS_AT_ONCE // len(values))
    # The parts are views: filling them fills means
    for part in np.split(means, range(rows, RESAMPLES, rows)):
        part[:] = values[rng.integers(len(values), size=(len(part), len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def share_interval(values, seed: int = 0):
    """bootstrap_interval of shares, numbers in 0..1; Wilson's interval if all are 0 or all are 1.

    All resamples of equal values have the same mean, and their interval would have width 0.
    """
    values = np.asarray(values, np.float64)
    mean, low, high = bootstrap_interval(values, seed)
    if mean in (0, 1):
        low, high = wilson_interval(int(values.sum()), len(values))
    return mean, low, high
