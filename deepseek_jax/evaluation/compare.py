"""Is one run better than another on the same problems, or is the difference noise?"""

from typing import NamedTuple

import numpy as np

from deepseek_jax.evaluation.accuracy import mean_interval

NO_DIFFERENCE = "no difference shown"
LEVEL = 0.05
# Random draws of the differences' signs
FLIPS = 10_000
# Signs in memory at once
DRAWS_AT_ONCE = 2**20
# Tolerance for two equal means of differences, summed in another order
ROUNDING = 1e-12


class Comparison(NamedTuple):
    """difference: (mean, low, high) of ours minus theirs, at 95%. p_value: of the sign-flip test."""

    difference: tuple[float, float, float]
    p_value: float

    @property
    def verdict(self):
        """ "better" or "worse" where the interval excludes 0 and the test agrees, else NO_DIFFERENCE."""
        mean, low, high = self.difference
        # The interval alone is too narrow with few problems, see compare
        if low <= 0 <= high or self.p_value >= LEVEL:
            return NO_DIFFERENCE
        return "better" if mean > 0 else "worse"


def compare(ours, theirs):
    """Compare two runs problem by problem: a Comparison.

    ours, theirs: numbers [p], of the same problems in the same order. The t interval is that of the
    differences: a problem that is hard for one run is hard for the other, so it is narrower than those of the
    two runs. With few problems that differ it is too narrow, so a verdict needs the test to agree: fewer than
    six problems never show a difference. Raises ValueError as mean_interval does, and for two lengths.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.shape} scores against {theirs.shape}: not the same problems")
    differences = ours - theirs
    return Comparison(mean_interval(differences), sign_flip_p_value(differences))


def sign_flip_p_value(differences):
    """The two-sided p-value of a permutation test (Fisher, 1935, section 21).

    If the two runs were equally good, each problem's difference would have either sign with equal
    probability. differences: float[p]. FLIPS random sign flips; the observed signs count as one more,
    which holds the test at its level.
    """
    differences = np.asarray(differences, np.float64)
    rng = np.random.default_rng(0)
    # as_large begins at 1, for the observed signs
    observed, as_large, left = abs(differences.mean()), 1, FLIPS
    # In parts of at most DRAWS_AT_ONCE signs, which fit in memory
    while left:
        rows = min(left, max(1, DRAWS_AT_ONCE // len(differences)))
        signs = rng.choice([-1.0, 1.0], size=(rows, len(differences)))
        means = np.abs(signs @ differences) / len(differences)
        as_large += int(np.sum(means >= observed - ROUNDING))
        left -= rows
    return as_large / (FLIPS + 1)
