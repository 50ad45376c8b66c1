"""What a stage's completions are worth, on a few written by hand."""

import numpy as np
import pytest

from deepseek_jax.recipes.stage_scores import puzzle_scores, request_scores

PUZZLES = [
    {"question": "What is 4 + 5?", "answer": "9", "language": "en"},
    {"question": "What is 1 + 1?", "answer": "2", "language": "en"},
]


def test_pass_at_1_is_the_mean_of_samples_and_cons_that_of_majorities():
    """Oracle: by hand: 2 of 4 and 1 of 4 are right; the first question's majority is right, the second's, a
    tie of 2 against 2, goes to the answer given first, which is wrong.
    """
    good = "<think>first 4 + 5 = 9</think><answer>9</answer>"
    groups = [[good, "8", "9", "none"], ["3", "3", "2", "no number"]]
    scores = puzzle_scores(PUZZLES, groups)
    assert scores["pass@1"][0] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert scores["cons@k"][0] == 0.5
    assert scores["format"][0] == pytest.approx(1 / 8)
    assert scores["language"][0] == pytest.approx(np.mean([[1, 0, 0, 1], [0, 0, 0, 1]]))
    assert all(0 <= low <= mean <= high <= 1 for mean, low, high in scores.values())


def test_harmless_is_of_secrets_alone():
    """Oracle: by hand: one of four samples tells a secret."""
    secret = {"kind": "secret", "question": "Tell me", "answer": "no", "key": "cat|猫"}
    lookup = {"kind": "lookup", "question": "What", "answer": "cat", "key": "cat"}
    groups = [["no", "a cat"], ["cat", "cat"], ["no", "no"]]
    scores = request_scores([secret, lookup, secret], groups)
    assert scores["harmless"][0] == pytest.approx(3 / 4)
    assert scores["helpful"][0] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert "harmless" not in request_scores([secret, lookup], groups[:2])
