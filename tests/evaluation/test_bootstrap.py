"""Bootstrap intervals against all resamples of three problems, scipy's, and a world whose truth is known."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from deepseek_jax.evaluation import bootstrap
from deepseek_jax.evaluation.accuracy import wilson_interval
from deepseek_jax.evaluation.bootstrap import bootstrap_interval, share_interval


def test_the_interval_of_three_problems_is_that_of_all_27_resamples():
    """Oracle: every resample, by hand: the least of 27 equally likely means has 3.7%, more than 2.5%."""
    values = [0.0, 0.5, 1.0]
    means = [np.mean(resample) for resample in product(values, repeat=3)]
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert bootstrap_interval(values) == (0.5, low, high) == (0.5, 0.0, 1.0)
    values = [0.2] * 2 + [0.8]  # its extremes have 8/27 and 1/27
    assert bootstrap_interval(values) == pytest.approx((0.4, 0.2, 0.8))


def test_the_interval_is_scipys():
    """Oracle: scipy.stats.bootstrap with another random stream. The ends agree within their noise: its
    standard error is near 0.03 standard errors of the mean with 10,000 resamples.
    """
    values = np.random.default_rng(1).beta(0.5, 1.0, size=60)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, random_state=2
    ).confidence_interval
    noise = 0.15 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(bootstrap_interval(values)[1:], theirs, atol=noise)


def test_the_interval_covers_the_truth_in_about_95_of_100_worlds():
    """Oracle: simulated: 300 benchmarks of 60 problems, each solved with a chance from Beta(1, 3), 4 samples.

    The standard error of 95% is 1.3 points; percentile intervals of 60 problems are a point or so short.
    An interval that treats each sample as a problem is half as wide and covers far less.
    """
    rng = np.random.default_rng(0)
    chances = rng.beta(1, 3, size=(300, 60, 1))
    correct = rng.random((300, 60, 4)) < chances
    intervals = [bootstrap_interval(world.mean(1)) for world in correct]
    covered = np.mean([low <= 0.25 <= high for _, low, high in intervals])
    assert 0.90 <= covered <= 0.98
    naive = [wilson_interval(int(world.sum()), world.size) for world in correct]
    assert np.mean([low <= 0.25 <= high for low, high in naive]) < covered - 0.05


def test_draws_in_parts_are_the_same_draws(monkeypatch):
    """Oracle: all resamples at once, from one stream."""
    values = np.random.default_rng(3).random(7)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 7 * 999)
    assert bootstrap_interval(values) == whole


def test_a_seed_gives_one_interval():
    """Oracle: the same call again, and another seed."""
    values = np.random.default_rng(4).random(20)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_but_zeros_or_ones_gets_wilsons_interval(share):
    """Oracle: wilson_interval; and the rule of thumb for its other end, 4 / (n + 4)."""
    mean, low, high = share_interval([share] * 20)
    assert (mean, low, high) == (share, *wilson_interval(int(20 * share), 20))
    assert high - low == pytest.approx(4 / 24, abs=0.01)


def test_other_shares_get_the_bootstraps_interval_within_0_and_1():
    """Oracle: bootstrap_interval of the same."""
    values = [0.0] * 5 + [0.25]
    assert share_interval(values) == bootstrap_interval(values)
    assert share_interval(values)[1] == 0.0


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]], [1.0, np.nan]])
def test_what_has_no_interval_is_refused(values):
    """Oracle: by hand."""
    with pytest.raises(ValueError, match="an interval needs 2|are not finite"):
        bootstrap_interval(values)
