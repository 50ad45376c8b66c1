"""pass@k against every choice of k samples, and against exact fractions."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from deepseek_jax.evaluation.pass_at_k import pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_choices_of_k_samples_with_a_right_one(n):
    """Oracle: every choice of k of n samples, for every number of right ones and every k."""
    correct = np.arange(n) < np.arange(n + 1)[:, None]
    for k in range(1, n + 1):
        chosen = list(combinations(range(n), k))
        wanted = [np.mean([any(row[i] for i in choice) for choice in chosen]) for row in correct]
        np.testing.assert_allclose(pass_at_k(correct, k), wanted, atol=1e-15)


def test_pass_at_k_of_many_samples_neither_overflows_nor_cancels():
    """Oracle: eq. 1 in exact fractions; C(1000, 500) has more digits than a float. The tolerance is a few
    roundings of 1e-16 for each of at most 1000 factors.
    """
    for right, k in ((1, 1), (1, 500), (3, 500), (40, 64), (999, 2), (600, 401)):
        correct = np.arange(1000)[None] < right
        exact = 1 - Fraction(math.comb(1000 - right, k), math.comb(1000, k))
        np.testing.assert_allclose(pass_at_k(correct, k), [float(exact)], rtol=1e-12)


def test_pass_at_k_has_no_bias():
    """Oracle: the truth, 1 - (1 - p)^k, for k = 3 and problems solved with p = 0.2. The mean over 20,000
    problems of 5 samples is within four standard errors; the plain estimate 1 - (1 - c/n)^k is not.
    """
    correct = np.random.default_rng(0).random((20_000, 5)) < 0.2
    truth, estimate = 1 - 0.8**3, pass_at_k(correct, 3)
    error = estimate.std() / np.sqrt(len(estimate))
    assert abs(estimate.mean() - truth) < 4 * error
    plain = 1 - (1 - correct.mean(1)) ** 3
    assert abs(plain.mean() - truth) > 10 * error


@pytest.mark.parametrize("k", [0, 4])
def test_more_samples_than_were_drawn_are_refused(k):
    """Oracle: by hand."""
    with pytest.raises(ValueError, match=f"pass@{k} of 3 samples: k must be within 1..3"):
        pass_at_k(np.ones((2, 3), bool), k)
