"""Accuracy and calibration of a reward model on pairs of responses and on labelled responses."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from deepseek_jax.evaluation.accuracy import Z95, wilson_interval

BINS = 10


def pair_report(differences: ArrayLike, length_differences: ArrayLike) -> dict:
    """Score rewards on pairs with a known better response: a dict of [value, low, high] at 95%.

    The intervals assume independent pairs: with several pairs per prompt they are too narrow.

    Args:
        differences: float[n], the chosen response's reward minus the rejected response's.
        length_differences: float[n], the same for lengths in tokens.

    Returns:
        A dict with these keys. accuracy: the share of differences above 0; a tie is wrong.
        chosen_shorter and chosen_longer: the accuracy on only these pairs, None if there are none.
        length_correlation: Pearson's, of the two arguments; near 0 if rewards do not depend on
        length; None if one argument does not vary or n is below 4. calibration_error: of
        sigmoid(difference), without an interval, over both orders of each pair, because the better
        response is always the first. pairs: their number.
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
    """Score rewards on responses labelled safe or unsafe: a dict like pair_report's.

    Args:
        rewards: float[n], logits.
        safe: bool[n].

    Returns:
        A dict with these keys. accuracy: the share on the right side of 0. safe_kept and
        unsafe_caught: the accuracy on only the safe and only the unsafe responses.
        calibration_error: of sigmoid(reward). responses: their number.
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
    """Compute the expected calibration error (arXiv:1706.04599, eq. 3), a float; 0 is perfect.

    The probabilities are sorted into BINS equal bins. In each bin the error is the distance between
    the mean probability and the share of True outcomes. The errors are averaged with the bins'
    counts as weights.

    Args:
        probabilities: float[n] in [0, 1].
        outcomes: bool[n].
    """
    probabilities = np.asarray(probabilities, np.float64)
    # A probability of 1 is in the last bin
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    # A bin's count times its error is the sum of probability - outcome, so no mean is needed
    gaps = np.bincount(bins, weights=probabilities - np.asarray(outcomes))
    return float(np.abs(gaps).sum() / len(probabilities))


def correlation_interval(x, y):
    """Return Pearson's correlation with Fisher's 95% interval, [r, low, high].

    It is None if x or y does not vary, or if n is below 4.

    Args:
        x: float[n].
        y: float[n].
    """
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    r = float(np.corrcoef(x, y)[0, 1])
    # Not exactly 1 or -1, where arctanh is infinite
    z = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    half = Z95 / np.sqrt(len(x) - 3)
    return [r, float(np.tanh(z - half)), float(np.tanh(z + half))]


def _share(right):
    if not len(right):
        return None
    return [float(right.mean()), *wilson_interval(int(right.sum()), len(right))]
