import statistics

import numpy as np
import pytest
from scipy import stats

from deepseek_jax.evaluation import accuracy
from deepseek_jax.evaluation.accuracy import (
    length_interval,
    mean_interval,
    score_interval,
    share_interval,
    summarise,
    wilson_interval,
)


@pytest.mark.parametrize("successes, n", [(0, 5), (5, 5), (1, 1), (67, 256), (241, 256), (3, 1319)])
def test_wilson_interval_is_the_known_one(successes, n):
    """Oracle: scipy.stats.binomtest; both are a few float64 operations, hence 1e-12."""
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson_interval(successes, n), expected, atol=1e-12)


def test_wilson_interval_stays_within_zero_and_one():
    """Oracle: the invariant, exact, for 0 and for n successes of every n."""
    for n in range(1, 300):
        assert wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0


@pytest.mark.parametrize("successes, n", [(1, 0), (-1, 4), (5, 4)])
def test_wilson_interval_refuses_impossible_counts(successes, n):
    """Oracle: the documented range."""
    with pytest.raises(ValueError, match=f"{successes} successes of {n}"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("successes, n", [(0, 20), (20, 20), (1, 2), (67, 256), (3, 1319)])
def test_one_sample_a_problem_has_wilsons_interval(successes, n):
    """Oracle: wilson_interval, which is scipy's; 1e-12: a few float64 operations."""
    values = np.arange(n) < successes
    wanted = successes / n, *wilson_interval(successes, n)
    np.testing.assert_allclose(share_interval(values), wanted, atol=1e-12)


def test_samples_of_one_problem_are_worth_less_than_problems():
    """Oracle: Wilson's interval, by hand: problems whose four samples are all alike are worth one trial each,
    and problems that are all equally hard, and so vary as their samples do, four; ADDED takes up to a tenth
    of them here.
    """
    alike = [0.0] * 60 + [1.0] * 20
    assert share_interval(alike) == pytest.approx((0.25, *wilson_interval(20, 80)))
    rng = np.random.default_rng(0)
    equally_hard = rng.binomial(4, 0.25, size=10_000) / 4
    _, low, high = share_interval(equally_hard)
    least, most = wilson_interval(int(equally_hard.sum() * 4), 40_000)
    assert high - low == pytest.approx(most - least, rel=0.03)
    _, low, high = share_interval(equally_hard[:80])
    least, most = wilson_interval(int(equally_hard[:80].sum() * 4), 320)
    assert most - least < high - low < 1.15 * (most - least)


def test_equal_shares_still_have_an_interval_of_some_width():
    """Oracle: by hand: 20 problems of which half the samples are right, worth 20 * 24 / 4 trials."""
    assert share_interval([0.5] * 20) == pytest.approx((0.5, *wilson_interval(60, 120)))


@pytest.mark.parametrize(
    "values", [[], [1.0], [[1.0, 0.0]], [1.0, np.nan], [0.5, 1.5], [-0.1, 0.5]]
)
def test_share_interval_refuses_what_has_none(values):
    """Oracle: the documented conditions."""
    with pytest.raises(ValueError, match="an interval needs 2|are not finite|are not within 0..1"):
        share_interval(values)


def test_scores_outside_0_and_1_have_the_interval_of_a_mean():
    """Oracle: the two intervals called directly."""
    shares = [0.0, 0.5, 1.0, 0.25]
    assert score_interval(shares) == share_interval(shares)
    for scores in ([0.0, 0.5, 1.5], [-0.1, 0.5, 1.0]):
        assert score_interval(scores) == mean_interval(scores)


def test_mean_interval_is_students():
    """Oracle: scipy.stats' t interval around the mean; float64, hence 1e-12."""
    values = np.random.default_rng(0).choice([0.0, 1.0, 2.0], size=37)
    low, high = stats.t.interval(0.95, 36, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(mean_interval(values), (values.mean(), low, high), rtol=1e-12)


def test_mean_interval_covers_the_mean_as_often_as_it_says():
    """Oracle: 95% by definition; 2000 draws, so 4 standard errors are 2 points."""
    draws = np.random.default_rng(1).normal(3.0, 2.0, size=(2000, 8))
    covered = [low <= 3.0 <= high for _, low, high in map(mean_interval, draws)]
    assert abs(np.mean(covered) - 0.95) < 0.02


def test_length_interval_is_the_bootstrap_t():
    """Oracle: the definition, by a loop over resamples with the statistics module. A sample of equal values
    has a width of 0, and few values have Student's interval.
    """
    values = np.random.default_rng(1).lognormal(3, 1, 20).tolist()
    draws = np.random.default_rng(0).integers(20, size=(accuracy.RESAMPLES, 20))
    mean, error, ratios = statistics.mean(values), statistics.stdev(values) / 20**0.5, []
    for draw in draws.tolist():
        resample = [values[i] for i in draw]
        ratios.append((statistics.mean(resample) - mean) / (statistics.stdev(resample) / 20**0.5))
    low, high = (mean - np.quantile(ratios, share) * error for share in (0.975, 0.01))
    np.testing.assert_allclose(length_interval(values), (mean, low, high), rtol=1e-12)
    assert high > mean_interval(values)[2]
    assert length_interval([7] * 12) == (7, 7, 7)
    assert length_interval(values[:9]) == mean_interval(values[:9])
    assert length_interval(values[:10]) != mean_interval(values[:10])


def test_a_resample_of_one_value_is_left_out():
    """Oracle: the definition, by a loop: a third of the resamples of nine equal values and another one are of
    a single value, and have no t.
    """
    values, ratios = np.array([1.0] * 9 + [1.5]), []
    for draw in np.random.default_rng(0).integers(10, size=(2000, 10)):
        if values[draw].std(ddof=1) > 0:
            ratios.append((values[draw].mean() - 1.05) / values[draw].std(ddof=1))
    assert 1000 < len(ratios) < 1500
    low, high = (1.05 - np.quantile(ratios, share) * values.std(ddof=1) for share in (0.975, 0.01))
    np.testing.assert_allclose(length_interval(values), (1.05, low, high), rtol=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]], [1.0, np.nan], [1.0, np.inf]])
def test_mean_interval_refuses_what_has_none(values):
    """Oracle: the documented conditions."""
    with pytest.raises(ValueError):
        mean_interval(values)


def test_summarise_takes_booleans_as_shares_and_numbers_as_means():
    """Oracle: the two intervals called directly."""
    right, reward = np.array([True, False, True]), np.array([2.0, 0.0, 1.0], np.float32)
    summary = summarise({"accuracy": right, "reward": reward})
    assert summary["accuracy"] == (2 / 3, *wilson_interval(2, 3))
    assert summary["reward"] == mean_interval(reward)
    many = np.random.default_rng(1).lognormal(3, 1, 20)
    for name in ("length", "completion_length"):
        assert summarise({name: many})[name] == length_interval(many) != mean_interval(many)
    assert summarise({"reward": many})["reward"] == mean_interval(many)


def test_summarise_names_the_score_that_has_no_interval():
    """Oracle: the name in the message; an empty share causes no warning before it."""
    with pytest.raises(ValueError, match="score 'reward'"):
        summarise({"reward": np.zeros(1)})
