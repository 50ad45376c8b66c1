"""Every kind of interval that a table shows covers the truth about as often as it says, 95 times in 100."""

import numpy as np
import pytest
from scipy.optimize import brentq

from deepseek_jax.evaluation.accuracy import (
    ADDED_OF_PASS_AT_K,
    length_interval,
    mean_interval,
    share_interval,
    wilson_interval,
)
from deepseek_jax.evaluation.compare import compare
from deepseek_jax.evaluation.conversation_loss import ratio_interval
from deepseek_jax.evaluation.pass_at_k import pass_at_k
from deepseek_jax.evaluation.preference import correlation_interval
from tests.quick import others_slow

SHARES = np.linspace(0.05, 0.95, 19)
WORLDS = 1000


def solved(rng, p, problems, samples, worlds=WORLDS):
    """The share of right samples of each problem, [worlds problems]: chances from Beta(2 p, 2 (1 - p))."""
    chances = rng.beta(2 * p, 2 * (1 - p), size=(worlds, problems, 1))
    return (rng.random((worlds, problems, samples)) < chances).mean(2)


def covered(intervals, truth):
    """The share of (low, high) pairs that hold the truth; 1e-9: rounding of means."""
    low, high = np.transpose(intervals)
    return np.mean((low <= truth + 1e-9) & (truth - 1e-9 <= high))


def check(coverage):
    """Mean coverage over SHARES within 94 to 97%, and never below 92%."""
    assert 0.94 <= np.mean(coverage) <= 0.97, coverage
    assert np.min(coverage) >= 0.92, coverage


@pytest.mark.parametrize("problems", [32, 64, 256])
def test_a_share_of_one_sample_a_problem(problems):
    """Oracle: the binomial distribution, exactly: each count's chance, where its interval holds the share."""
    counts = np.arange(problems + 1)
    low, high = np.transpose([wilson_interval(int(count), problems) for count in counts])
    logs = np.concatenate([[0], np.cumsum(np.log(np.arange(1, problems + 1)))])
    choices = logs[problems] - logs[counts] - logs[problems - counts]
    coverage = []
    for p in SHARES:
        chances = np.exp(choices + counts * np.log(p) + (problems - counts) * np.log1p(-p))
        coverage.append(chances[(low <= p) & (p <= high)].sum())
    check(coverage)


@pytest.mark.parametrize(
    "problems, samples", others_slow([(32, 4), (32, 16), (64, 4), (256, 4)], (32, 4))
)
def test_a_share_of_several_samples_a_problem(problems, samples):
    """Oracle: simulated, with a known share; 1000 worlds: a standard error of 0.7 points at each share."""
    rng = np.random.default_rng(problems + samples)
    check(
        [
            covered([share_interval(w)[1:] for w in solved(rng, p, problems, samples)], p)
            for p in SHARES
        ]
    )


@pytest.mark.parametrize(
    "problems, n, k", others_slow([(32, 8, 4), (64, 16, 8), (256, 16, 4)], (32, 8, 4))
)
def test_a_pass_at_k(problems, n, k):
    """Oracle: simulated, 1 - (1 - chance)**k of each problem, whose mean over Beta(a, b) is a product."""

    def mean(p):
        failing = [(2 * (1 - p) + i) / (2 + i) for i in range(k)]
        return 1 - np.prod(failing)

    rng, found = np.random.default_rng(problems + k), []
    of_count = pass_at_k(np.tri(n + 1, n, -1), k)
    for share in SHARES:
        p = brentq(lambda p, share=share: mean(p) - share, 1e-6, 1 - 1e-6)
        right = np.rint(solved(rng, p, problems, n) * n).astype(int)
        found.append(
            covered([share_interval(w, ADDED_OF_PASS_AT_K)[1:] for w in of_count[right]], share)
        )
    check(found)


def test_intervals_that_take_samples_for_problems_fail_this_check():
    """Oracle: by hand: the check can fail: a sample more of the same problem is not a problem more."""
    rng = np.random.default_rng(0)
    naive = [
        covered([wilson_interval(int(w.sum() * 16), 64 * 16) for w in solved(rng, p, 64, 16)], p)
        for p in SHARES[::6]
    ]
    with pytest.raises(AssertionError):
        check(naive)


@pytest.mark.parametrize(
    "problems, samples", others_slow([(64, 1), (64, 4), (256, 1), (256, 16)], (64, 1))
)
def test_a_difference_of_two_runs(problems, samples, monkeypatch):
    """Oracle: simulated: theirs solves each problem four fifths as often as ours: a difference of p / 5."""
    # The test of a verdict takes most of the time and leaves the interval alone
    monkeypatch.setattr("deepseek_jax.evaluation.compare.FLIPS", 1)
    rng = np.random.default_rng(problems + samples)
    coverage = []
    for p in SHARES:
        chances = rng.beta(2 * p, 2 * (1 - p), size=(WORLDS, problems, 1))
        ours, theirs = (
            (rng.random((WORLDS, problems, samples)) < chances * factor).mean(2)
            for factor in (1, 0.8)
        )
        found = [compare(*pair).difference[1:] for pair in zip(ours, theirs, strict=True)]
        coverage.append(covered(found, p / 5))
    check(coverage)


# Lengths by the kind of their tail; "cut" is a limit of completions
LONG_TAILED = {
    "lognormal 0.3": lambda rng, size: rng.lognormal(0, 0.3, size),
    "lognormal 1": lambda rng, size: rng.lognormal(0, 1, size),
    "lognormal 1, cut": lambda rng, size: np.minimum(rng.lognormal(0, 1, size), 5),
    "geometric": lambda rng, size: rng.geometric(0.1, size),
    "normal": lambda rng, size: rng.normal(10, 1, size),
}


@pytest.mark.parametrize(
    "kind, problems",
    others_slow(
        [(kind, n) for kind in LONG_TAILED for n in (10, 16, 64, 256)], ("lognormal 1", 16)
    ),
)
def test_a_mean_of_lengths(kind, problems):
    """Oracle: simulated: 2000 worlds: 0.5 points. A sample of 10 has too little of a tail of sigma 1."""
    draw = LONG_TAILED[kind]
    truth = draw(np.random.default_rng(0), 10_000_000).mean()
    values = draw(np.random.default_rng(problems), (2000, problems))
    found = covered([length_interval(world)[1:] for world in values], truth)
    lowest = 0.90 if problems == 10 else 0.93
    assert lowest <= found <= 0.975


@pytest.mark.parametrize("spread", [0.3, 0.6])
@pytest.mark.parametrize("problems", [64, 256])
def test_a_mean_of_rewards_or_losses(problems, spread):
    """Oracle: simulated: log-normal values, whose mean is exp(spread**2 / 2). 8000 worlds: 0.25 points."""
    values = np.random.default_rng(problems).lognormal(0, spread, size=(8000, problems))
    found = [mean_interval(world)[1:] for world in values]
    assert 0.93 <= covered(found, np.exp(spread**2 / 2)) <= 0.97


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_mean_of_a_few_seeds(seeds):
    """Oracle: simulated normal values, the assumption of a sweep's table; 8000 draws: 0.25 points."""
    values = np.random.default_rng(seeds).normal(3, 2, size=(8000, seeds))
    assert 0.94 <= covered([mean_interval(draw)[1:] for draw in values], 3) <= 0.96


def test_a_loss_of_conversations():
    """Oracle: simulated: 64 conversations of 5 to 200 tokens whose losses vary by conversation around 2 nats,
    apart from their lengths. 4000 worlds: 0.35 points.
    """
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 200, size=(4000, 64))
    totals = counts * rng.normal(2, 0.5, size=(4000, 64)) + rng.normal(size=(4000, 64)) * np.sqrt(
        counts
    )
    found = [ratio_interval(*world)[1:] for world in zip(totals, counts, strict=True)]
    assert 0.93 <= covered(found, 2) <= 0.97


@pytest.mark.parametrize("r", [0.0, 0.3, 0.8])
def test_a_correlation(r):
    """Oracle: simulated pairs of normal values with a known correlation. 2000 worlds: 0.5 points."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 2000, 64))
    found = [
        correlation_interval(*w)[1:]
        for w in zip(x, r * x + np.sqrt(1 - r * r) * noise, strict=True)
    ]
    assert 0.93 <= covered(found, r) <= 0.97
