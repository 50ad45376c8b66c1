"""Means with 95% intervals, so that two of them can be compared."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

# The 97.5% quantile of the normal distribution
Z95 = 1.959963984540054
# Problems that share_interval adds, because it is uncertain of the spread: about Z95**2, as in
# Agresti and Coull (1998)
ADDED = 4
# The same for pass@k with k above 1, where estimates are skewed near 1. Found by simulation, see
# tests/reliability
ADDED_OF_PASS_AT_K = 8
# Names of scores that are lengths in tokens
LENGTHS = ("length", "completion_length")
# length_interval draws RESAMPLES resamples if there are at least FEWEST values. BEYOND are the
# shares of the resamples below its lower end and above its upper end. A sample seldom has the long
# tail, so the share above is smaller (tests/reliability/test_intervals.py)
RESAMPLES = 2000
FEWEST = 10
BEYOND = 0.025, 0.01


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a share (Wilson 1927).

    It stays sensible at 0 and 1 and at small n.

    Args:
        successes: From 0 to n.
        n: Number of independent trials, at least 1.

    Returns:
        (low, high), both in [0, 1].

    Raises:
        ValueError: If successes or n is outside its range.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: needs 0 <= successes <= n and n >= 1")
    return _wilson(successes / n, n)


def share_interval(values: ArrayLike, added: int = ADDED) -> tuple[float, float, float]:
    """Return the mean of shares and its 95% interval: Wilson's, for the trials that they are worth.

    Samples of one problem are alike, so p problems of n samples are worth between p and p n trials:
    p over the design effect (Kish, 1965, section 8.2), which is the variance over problems relative
    to the variance of zeros and ones with the same mean. The spread of few problems is uncertain,
    so `added` more problems count, each with samples that are all alike. If the values are only
    zeros and ones, one sample a problem, the result is Wilson's interval itself.

    Args:
        values: Numbers [p] in 0..1, p >= 2, one per problem, such as the share of its samples that
            are right.

    Returns:
        (mean, low, high).

    Raises:
        ValueError: For fewer than two values, and for values that are not finite or not within
            0..1.
    """
    values = _checked(values)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"shares from {values.min():g} to {values.max():g} are not within 0..1")
    mean, n = float(values.mean()), len(values)
    largest = mean * (1 - mean)
    effect = float(values.var()) / largest if largest else 1.0
    return mean, *_wilson(mean, n * (n + added) / (n * effect + added))


def score_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Return the mean of any rule's scores and its 95% interval: (mean, low, high).

    It is share_interval if all values are within 0..1, else mean_interval.
    """
    values = _checked(values)
    is_share = values.min() >= 0 and values.max() <= 1
    return (share_interval if is_share else mean_interval)(values)


def _wilson(share, n):
    """Compute (low, high) of a share of n trials; n need not be an int."""
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    # For a share of 0 or 1 one bound is exactly that; rounding would give 1e-17 or 1 - 1e-16
    low = 0.0 if share == 0 else float(centre - half)
    high = 1.0 if share == 1 else float(centre + half)
    return low, high


def mean_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Return the mean and its 95% t interval: mean -+ t_{n-1} * std / sqrt(n), std with n - 1.

    Args:
        values: float[n], n >= 2, finite and independent of each other: average several samples of
            one prompt first. Equal values give an interval of width 0, although values not seen may
            differ.

    Returns:
        (mean, low, high).

    Raises:
        ValueError: For fewer than two values, and for NaN or infinity.
    """
    values = _checked(values)
    mean = float(values.mean())
    half = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def length_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Return the mean and 95% bootstrap-t interval of values with a long right tail, as lengths.

    The ends are mean - t * std / sqrt(n), where t are quantiles of (resample's mean - mean) /
    (resample's std / sqrt(n)), in place of Student's t in mean_interval (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, section 12.5). The upper end is higher than in
    mean_interval, which misses the mean of such values too often. Fewer than FEWEST values get
    mean_interval. The same values give the same interval.

    Args:
        values: As in mean_interval.

    Returns:
        (mean, low, high).

    Raises:
        ValueError: As in mean_interval.
    """
    values = _checked(values)
    n, mean, std = len(values), float(values.mean()), values.std(ddof=1)
    if n < FEWEST or not std:
        return mean_interval(values)
    resamples = values[np.random.default_rng(0).integers(n, size=(RESAMPLES, n))]
    stds = resamples.std(axis=1, ddof=1)
    # A resample that repeats one value has no t
    t = (resamples.mean(axis=1) - mean)[stds > 0] / stds[stds > 0]
    below, above = np.quantile(t, (1 - BEYOND[0], BEYOND[1]))
    return mean, float(mean - below * std), float(mean - above * std)


def _checked(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs 2 values in a row, given shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.sum(~np.isfinite(values))} of {len(values)} values are not finite")
    return values


def summarise(scores: Mapping[str, ArrayLike]) -> dict[str, tuple[float, float, float]]:
    """Compute a mean with its 95% interval for each score: name -> (mean, low, high).

    Args:
        scores: Name -> an array [n] of per-example scores. bool is a share and gets Wilson's
            interval. Numbers get the t interval, or length_interval for the names of LENGTHS.

    Raises:
        ValueError: If no interval can be computed; the message names the score.
    """
    summary = {}
    for name, values in scores.items():
        values = np.asarray(values)
        try:
            if values.dtype == bool:
                interval = wilson_interval(int(values.sum()), values.size)
                summary[name] = (float(values.mean()), *interval)
            else:
                interval_of = length_interval if name in LENGTHS else mean_interval
                summary[name] = interval_of(values)
        except ValueError as error:
            raise ValueError(f"score {name!r}: {error}") from error
    return summary
