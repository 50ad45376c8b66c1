"""Near-duplicates of earlier texts."""

import numpy as np

from deepseek_jax.synthesis.near_duplicates import NUM_PERMUTATIONS, NearDuplicates
from deepseek_jax.synthesis.ngrams import ngrams, units

N, THRESHOLD = 2, 0.7


def jaccard(a, b):
    """The Jaccard similarity of two sets of runs."""
    return len(a & b) / len(a | b)


def families(rng, count):
    """Texts of 40 words, each followed by three copies with 1 to 16 words changed."""
    texts = []
    for family in range(count):
        words = [f"w{family}x{i}" for i in range(40)]
        texts.append(" ".join(words))
        for _ in range(3):
            copy = list(words)
            for i in rng.choice(40, size=rng.integers(1, 17), replace=False):
                copy[i] = f"other{rng.integers(10**6)}"
            texts.append(" ".join(copy))
    return texts


def test_what_is_near_an_earlier_new_text_is_no_longer_new():
    """Oracle: the exact Jaccard similarity to every new text, in a loop. Skips texts whose nearest is within
    four standard errors of the threshold: a signature may put them on either side.
    """
    band = 4 * np.sqrt(THRESHOLD * (1 - THRESHOLD) / NUM_PERMUTATIONS)
    near, new, judged = NearDuplicates(THRESHOLD, N), [], []
    for text in families(np.random.default_rng(0), 60):
        runs = ngrams(units(text), N)
        nearest = max((jaccard(runs, other) for other in new), default=0.0)
        is_new = near.is_new(text)
        if abs(nearest - THRESHOLD) > band:
            assert is_new == (nearest < THRESHOLD), nearest
            judged.append(is_new)
        if is_new:
            new.append(runs)
    assert 70 < sum(judged) < len(judged) - 40


def test_the_same_texts_in_the_same_order_give_the_same():
    """Oracle: a second run; and only an identical text is near at a threshold of 1."""
    texts = families(np.random.default_rng(1), 5) * 2
    first, second = NearDuplicates(THRESHOLD, N), NearDuplicates(THRESHOLD, N)
    assert [first.is_new(text) for text in texts] == [second.is_new(text) for text in texts]
    exact = NearDuplicates(1.0, N)
    assert [exact.is_new(text) for text in texts] == [True] * 20 + [False] * 20


def test_a_text_without_words_is_always_new():
    """Oracle: by hand; no similarity is defined between empty sets."""
    near = NearDuplicates(THRESHOLD, N)
    assert near.is_new("...") and near.is_new("...")
