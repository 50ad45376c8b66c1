"""Reports about a reward model."""

import numpy as np
import pytest
import scipy.stats
from scipy.special import expit

from deepseek_jax.evaluation.accuracy import Z95, wilson_interval
from deepseek_jax.evaluation.preference import (
    calibration_error,
    correlation_interval,
    label_report,
    pair_report,
)


def test_pairs_are_counted_by_which_is_longer():
    """Oracle: by hand: of five pairs three are right, and a tie is wrong. The chosen response is shorter in
    two, of which one is right, and longer in two, of which one is right.
    """
    report = pair_report([1.0, -2.0, 3.0, 0.0, 4.0], [-3, -1, 1, 5, 0])
    assert report["accuracy"] == [3 / 5, *wilson_interval(3, 5)]
    assert report["chosen_shorter"] == report["chosen_longer"] == [1 / 2, *wilson_interval(1, 2)]
    assert report["pairs"] == 5
    assert pair_report([1.0, 2.0, 3.0, 4.0], [2, 2, 2, 2])["chosen_shorter"] is None


def test_the_length_correlation_is_pearsons_with_fishers_interval():
    """Oracle: scipy.stats.pearsonr. A reward equal to the length has correlation 1; for one independent of
    the length the interval contains 0.
    """
    rng = np.random.default_rng(0)
    lengths, noise = rng.normal(size=200), rng.normal(size=200)
    for x in (noise, noise + lengths, -lengths):
        wanted = scipy.stats.pearsonr(x, lengths)
        have = correlation_interval(x, lengths)
        np.testing.assert_allclose(have[0], wanted.statistic, atol=1e-12)
        np.testing.assert_allclose(have[1:], wanted.confidence_interval(0.95), atol=1e-7)
    assert correlation_interval(np.ones(5), np.arange(5)) is None
    assert correlation_interval(np.arange(5), np.ones(5)) is None
    assert correlation_interval([1, 2, 4], [2, 1, 3]) is None
    # As many as there have to be, without a correlation: of tanh's argument 1.96 is a standard error
    np.testing.assert_allclose(
        correlation_interval([0, 1, 0, 1], [0, 0, 1, 1]),
        [0, -np.tanh(Z95), np.tanh(Z95)],
        atol=1e-12,
    )
    # numpy would warn of the arctanh of 1, which is infinite
    with np.errstate(all="raise"):
        assert correlation_interval(np.arange(9), np.arange(9)) == pytest.approx([1, 1, 1])
        assert correlation_interval(np.arange(9), -np.arange(9)) == pytest.approx([-1, -1, -1])


def test_the_calibration_error_by_hand():
    """Oracle: by hand: ten at 0.95 with nine true are off by 0.05; ten at 0.25 with five true are off by
    0.25; a probability of 1 is in the last bin.
    """
    probabilities = np.repeat([0.95, 0.25], 10)
    outcomes = np.array([True] * 9 + [False] + [True] * 5 + [False] * 5)
    np.testing.assert_allclose(calibration_error(probabilities, outcomes), 0.15)
    assert calibration_error([1.0, 0.0], [True, False]) == 0
    # 0.05 and 0.095 are in one of ten bins, and would not be in one of eleven
    np.testing.assert_allclose(calibration_error([0.05, 0.095], [False, True]), 0.855 / 2)
    # 1 and 0.95 are in the last, and 0.85 is not
    np.testing.assert_allclose(calibration_error([1.0, 0.95], [False, True]), 0.95 / 2)
    np.testing.assert_allclose(calibration_error([0.95, 0.85], [False, True]), 1.1 / 2)


def test_rewards_that_mean_what_they_say_are_calibrated_and_others_are_not():
    """Oracle: pairs and labels drawn by the very probabilities, 20,000 of each: sampling alone is left, about
    0.01; the same rewards five times as large say more than they know.
    """
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=20_000)
    came_true = rng.random(20_000) < expit(rewards)
    differences = np.where(came_true, rewards, -rewards)
    lengths = rng.normal(size=20_000)
    for report, boasting in (
        (pair_report(differences, lengths), pair_report(5 * differences, lengths)),
        (label_report(rewards, came_true), label_report(5 * rewards, came_true)),
    ):
        assert report["calibration_error"] < 0.015 < 0.15 < boasting["calibration_error"]
        assert report["accuracy"] == boasting["accuracy"]


def test_labels_are_counted_by_what_they_are():
    """Oracle: by hand: three safe, two of them kept; two unsafe, one caught."""
    report = label_report([1.0, 2.0, -1.0, -3.0, 0.5], [True, True, True, False, False])
    assert report["accuracy"][0] == 3 / 5 and report["responses"] == 5
    assert report["safe_kept"] == [2 / 3, *wilson_interval(2, 3)]
    assert report["unsafe_caught"] == [1 / 2, *wilson_interval(1, 2)]
    # A reward of 0 is not above 0
    report = label_report([0.0, 0.0], [True, False])
    assert report["safe_kept"][0] == 0 and report["unsafe_caught"][0] == 1
