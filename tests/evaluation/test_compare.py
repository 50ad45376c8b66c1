"""Two runs on the same problems: when one is better, and when the difference is noise."""

import numpy as np
import pytest
from scipy import stats

from deepseek_jax.evaluation import compare as module
from deepseek_jax.evaluation.compare import NO_DIFFERENCE, Comparison, compare, sign_flip_p_value


def test_a_run_against_itself_shows_no_difference():
    """Oracle: by hand: every difference is 0, and every flip is as large."""
    scores = np.random.default_rng(0).random(30)
    assert compare(scores, scores) == Comparison((0.0, 0.0, 0.0), 1.0)
    assert compare(scores, scores).verdict == NO_DIFFERENCE


def test_two_runs_that_differ_by_less_than_noise_are_not_ranked():
    """Oracle: by hand: of 40 problems ours wins 11 and theirs 9; the two-sided p of at most 9 heads in 20 is
    0.82.
    """
    ours = np.array([1] * 11 + [0] * 9 + [1] * 10 + [0] * 10)
    theirs = np.array([0] * 11 + [1] * 9 + [1] * 10 + [0] * 10)
    found = compare(ours, theirs)
    assert found.difference[0] == 0.05 and found.verdict == NO_DIFFERENCE
    assert found.p_value == pytest.approx(stats.binomtest(9, 20).pvalue, abs=0.02)


def test_pairing_shows_what_the_two_intervals_alone_would_not():
    """Oracle: by hand: ours solves each problem 10 points more often. The difficulty spreads over 80
    points, so the runs' own intervals overlap; the interval of the difference has width 0.
    """
    theirs = np.linspace(0, 0.8, 20)
    found = compare(theirs + 0.1, theirs)
    assert found.verdict == "better" and found.difference == pytest.approx((0.1, 0.1, 0.1))
    assert compare(theirs, theirs + 0.1).verdict == "worse"


def test_five_problems_never_show_a_difference_and_six_may():
    """Oracle: by hand: all n flips go one way with probability 2 / 2^n, 6.3% for five and 3.1% for six, while
    the t interval has width 0.
    """
    for n, verdict in ((5, NO_DIFFERENCE), (6, "better")):
        found = compare(np.ones(n), np.zeros(n))
        assert found.difference == (1.0, 1.0, 1.0)
        assert found.p_value == pytest.approx(2 / 2**n, abs=0.01)
        assert found.verdict == verdict


def test_the_p_value_is_that_of_all_flips():
    """Oracle: scipy.stats.permutation_test over all 2^10 flips; 10,000 random ones are within 0.02."""
    differences = np.random.default_rng(5).normal(0.4, 1, size=10)
    exact = stats.permutation_test(
        (differences,),
        lambda d, axis: d.mean(axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    assert sign_flip_p_value(differences) == pytest.approx(exact, abs=0.02)


def test_runs_that_are_alike_are_seldom_ranked():
    """Oracle: simulated: 200 pairs of runs with the same chances on 30 problems, 4 samples: at most 5% may be
    ranked, and two standard errors of that are 3 points.
    """
    rng = np.random.default_rng(6)
    chances = rng.beta(1, 1, size=(200, 30, 1))
    ours, theirs = ((rng.random((200, 30, 4)) < chances).mean(2) for _ in range(2))
    verdicts = [compare(*pair).verdict for pair in zip(ours, theirs, strict=True)]
    assert np.mean([verdict != NO_DIFFERENCE for verdict in verdicts]) <= 0.08


@pytest.mark.parametrize(
    "difference, p_value, verdict",
    [
        ((0.1, 0.0, 0.2), 0.01, NO_DIFFERENCE),
        ((0.1, 0.01, 0.2), 0.05, NO_DIFFERENCE),
        ((0.1, 0.01, 0.2), 0.049, "better"),
        ((-0.1, -0.2, -0.01), 0.001, "worse"),
        ((-0.1, -0.2, 0.01), 0.001, NO_DIFFERENCE),
    ],
)
def test_a_verdict_needs_the_interval_and_the_test(difference, p_value, verdict):
    """Oracle: by hand."""
    assert Comparison(difference, p_value).verdict == verdict


def test_scores_of_other_problems_are_refused():
    """Oracle: by hand."""
    with pytest.raises(ValueError, match="not the same problems"):
        compare(np.ones(3), np.ones(4))


def test_flips_are_drawn_in_parts_that_fit_in_memory(monkeypatch):
    """Oracle: all at once; here one flip of six signs at a time, and twenty."""
    differences = np.random.default_rng(5).normal(0.4, 1, size=6)
    monkeypatch.setattr(module, "FLIPS", 50)
    whole = sign_flip_p_value(differences)
    for signs in (4, 6 * 20):
        monkeypatch.setattr(module, "DRAWS_AT_ONCE", signs)
        assert sign_flip_p_value(differences) == whole


@pytest.mark.parametrize("difference", [(0.1, 0.0, 0.2), (-0.1, -0.2, 0.0)])
def test_an_interval_that_ends_at_0_shows_nothing(difference):
    """Oracle: by hand."""
    assert Comparison(difference, 0.001).verdict == NO_DIFFERENCE
