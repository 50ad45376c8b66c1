"""How often at least one of k samples of a problem is right (arXiv:2107.03374)."""

import numpy as np


def pass_at_k(correct, k: int):
    """Estimate, from n samples, the chance that at least one of k samples of each problem is right.

    The unbiased estimate is 1 - C(n - c, k) / C(n, k), where c of the n samples are right
    (arXiv:2107.03374, eq. 1), computed as a product of numbers in 0..1.

    Args:
        correct: bool[p n], whether each sample is right.
        k: 1 gives the share of right samples.

    Returns:
        float64[p].

    Raises:
        ValueError: If k is not within 1..n.
    """
    correct = np.asarray(correct, bool)
    n, right_p1 = correct.shape[1], correct.sum(1, keepdims=True)
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples: k must be within 1..{n}")
    # The product over i = n - c + 1 .. n of 1 - k / i needs no binomial coefficient, which could
    # overflow
    i = np.arange(1, n + 1)
    # With fewer than k wrong samples the factor at i = k is 0: every choice of k samples has a
    # right one
    factors_pi = np.where(i > n - right_p1, np.maximum(1 - k / i, 0), 1)
    return 1 - factors_pi.prod(1)
