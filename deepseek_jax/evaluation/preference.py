"""Accuracy and calibration of a reward model on pairs of responses and on labelled responses."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from deepseek_jax.evaluation.accuracy import Z95, wilson_interval

BINS = 10


def pair_report(differences: ArrayLike, length_differences: ArrayLike) -> dict:
    """Scores of rewards on pairs with a known better response: a dict of [value, low, high], at 95%.

    differences: float[n], the chosen response's reward minus the rejected one's. length_differences: the same
    for lengths in tokens. accuracy: the share of differences above 0; a tie is wrong. chosen_shorter,
    chosen_longer: accuracy on those pairs alone, None without any. length_correlation: Pearson's, of the two
    arguments; near 0 if rewards do not depend on length; None if one does not vary. calibration_error: of
    sigmoid(difference), over both orders of each pair, because the better response is always
    the first; no interval. The intervals assume independent pairs: with several pairs per prompt they are too
    narrow.
    """
    differences = np.asarray(differences, np.float64)
    lengths = np.asarray(length_differences, np.float64)
    right = differences > 0
    both = np.concatenate([differences, -differences])
    better = np.repeat([True, False], len(differences))
    return {
        "accuracy": _share(right),
        "chosen_shorter": _share(right[lengths < 0]),
        "chosen_longer": _share(right[lengths > 0]),
        "length_correlation": correlation_interval(differences, lengths),
        "calibration_error": calibration_error(expit(both), better),
        "pairs": len(right),
    }


def label_report(rewards: ArrayLike, safe: ArrayLike) -> dict:
    """Scores of rewards on responses labelled safe or unsafe: a dict like that of pair_report.

    rewards: float[n], logits. safe: bool[n]. accuracy: the share on the right side of 0; safe_kept and
    unsafe_caught: the same of the safe and of the unsafe alone. calibration_error: of sigmoid(reward).
    """
    rewards, safe = np.asarray(rewards, np.float64), np.asarray(safe, bool)
    right = (rewards > 0) == safe
    return {
        "accuracy": _share(right),
        "safe_kept": _share(right[safe]),
        "unsafe_caught": _share(right[~safe]),
        "calibration_error": calibration_error(expit(rewards), safe),
        "responses": len(right),
    }


def calibration_error(probabilities, outcomes):
    """The expected calibration error (arXiv:1706.04599, eq. 3), over BINS equal bins of the probability.

    In each bin: the distance between the mean probability and the share of True outcomes; averaged with the
    bins' counts as weights. probabilities: float[n] in [0, 1]. outcomes: bool[n]. Returns a float; 0 is
    perfect.
    """
    probabilities = np.asarray(probabilities, np.float64)
    # A probability of 1 is in the last bin
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    # A bin's count times its gap is the sum of probability - outcome, so no bin's mean is needed
    gaps = np.bincount(bins, weights=probabilities - np.asarray(outcomes))
    return float(np.abs(gaps).sum() / len(probabilities))


def correlation_interval(x, y):
    """Pearson's correlation of x, float[n], and y, float[n], with Fisher's 95% interval: [r, low, high].

    None if one of them does not vary, or for n below 4.
    """
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    r = float(np.corrcoef(x, y)[0, 1])
    # arctanh of a perfect correlation is infinite
    z = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    half = Z95 / np.sqrt(len(x) - 3)
    return [r, float(np.tanh(z - half)), float(np.tanh(z + half))]


def _share(right):
    if not len(right):
        return None
    return [float(right.mean()), *wilson_interval(int(right.sum()), len(right))]
