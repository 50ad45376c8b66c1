"""Compare two runs on the same problems: is one better, or is the difference noise?"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from deepseek_jax.evaluation.accuracy import mean_interval

NO_DIFFERENCE = "no difference shown"
LEVEL = 0.05
# Random draws of all the differences' signs
FLIPS = 10_000
# Number of signs in memory at once
DRAWS_AT_ONCE = 2**20
# Equal means of differences may differ by this if they are summed in another order
ROUNDING = 1e-12


class Comparison(NamedTuple):
    """The difference of two runs on the same problems, and how likely it is noise.

    Attributes:
        difference: (mean, low, high) of our score minus theirs, with a 95% interval.
        p_value: The p-value of the sign-flip test.
    """

    difference: tuple[float, float, float]
    p_value: float

    @property
    def verdict(self) -> str:
        """The result in words: "better", "worse" or NO_DIFFERENCE.

        It is "better" or "worse" if the interval excludes 0 and the test agrees.
        """
        mean, low, high = self.difference
        # With few problems the interval is too narrow, see compare
        if low <= 0 <= high or self.p_value >= LEVEL:
            return NO_DIFFERENCE
        return "better" if mean > 0 else "worse"


def compare(ours: ArrayLike, theirs: ArrayLike) -> Comparison:
    """Compare two runs problem by problem.

    The t interval is of the differences. A problem that is hard for one run is hard for the other,
    so it is narrower than the intervals of the two runs. If few problems differ it is too narrow,
    so a verdict needs the test to agree: fewer than six problems never show a difference.

    Args:
        ours: Numbers [p], one per problem.
        theirs: The same for the other run, of the same problems in the same order.

    Raises:
        ValueError: As in mean_interval, and if the two lengths differ.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.shape} scores against {theirs.shape}: not the same problems")
    differences = ours - theirs
    return Comparison(mean_interval(differences), sign_flip_p_value(differences))


def sign_flip_p_value(differences):
    """Return the two-sided p-value of a permutation test (Fisher, 1935, section 21).

    If the two runs were equally good, each problem's difference would have either sign with equal
    probability. The test draws FLIPS random sign flips. The observed signs count as one more, which
    keeps the test at its level.

    Args:
        differences: float[p].
    """
    differences = np.asarray(differences, np.float64)
    rng = np.random.default_rng(0)
    # as_large begins at 1, which counts the observed signs
    observed_mean, as_large, remaining_flips = abs(differences.mean()), 1, FLIPS
    # Draw at most DRAWS_AT_ONCE signs at a time, which fit in memory
    while remaining_flips:
        rows = min(remaining_flips, max(1, DRAWS_AT_ONCE // len(differences)))
        signs = rng.choice([-1.0, 1.0], size=(rows, len(differences)))
        means = np.abs(signs @ differences) / len(differences)
        as_large += int(np.sum(means >= observed_mean - ROUNDING))
        remaining_flips -= rows
    return as_large / (FLIPS + 1)
