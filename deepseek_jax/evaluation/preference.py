"""How well a reward model tells better responses from worse ones, and how well it knows what it knows."""

import numpy as np
from scipy.special import expit

from deepseek_jax.evaluation.accuracy import Z95, wilson_interval

BINS = 10


def pair_report(differences, length_differences):
    """What rewards say about pairs whose better response is known: a dict of [value, low, high], at 95%.

    differences: float[n], the chosen response's reward less the rejected one's. length_differences: of the
    same, in tokens. accuracy: the share above 0, a tie being wrong; chosen_shorter and chosen_longer: the
    same of those pairs alone, None where there are none. length_correlation: Pearson's, of the two arguments;
    near 0 where length tells nothing; None where one of them does not vary. calibration_error: of
    sigmoid(difference), each pair taken in both orders, as it has none of its own; no interval. The
    intervals are of independent pairs: several about one prompt know less than they say.
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


def label_report(rewards, safe):
    """What rewards say about responses of which it is known whether they are safe: as pair_report.

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
    """The expected calibration error (arXiv:1706.04599, eq. 3): in BINS equal bins of the probability, the
    distance between its mean and the share of outcomes that came true, averaged by the bins' counts.

    probabilities: float[n] in [0, 1]. outcomes: bool[n]. Returns a float; 0 is perfect.
    """
    probabilities = np.asarray(probabilities, np.float64)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=probabilities - np.asarray(outcomes), minlength=BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def correlation_interval(x, y):
    """Pearson's correlation of float[n] and float[n] with Fisher's 95% interval: [r, low, high].

    None where one of them does not vary, or for fewer than 4 pairs of numbers.
    """
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
    z = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))  # a perfect one is at infinity
    half = Z95 / np.sqrt(len(x) - 3)
    return [r, float(np.tanh(z - half)), float(np.tanh(z + half))]


def _share(right):
    if not len(right):
        return None
    return [float(right.mean()), *wilson_interval(int(right.sum()), len(right))]
