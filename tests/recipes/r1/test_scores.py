"""The scores of a stage's completions, on a few written by hand."""

import numpy as np

from deepseek_jax.recipes.r1.scores import general_values, reasoning_values
from deepseek_jax.worlds.bilingual.world import BILINGUAL

ASKED = BILINGUAL.questions
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
    values = reasoning_values(ASKED["bilingual_puzzles"], PUZZLES, groups, [[0]] * 8)
    np.testing.assert_allclose(values["pass@1"], [2 / 4, 1 / 4])
    np.testing.assert_array_equal(values["cons@k"], [1, 0])
    np.testing.assert_allclose(values["format"], [1 / 4, 0])
    np.testing.assert_allclose(values["language"], np.mean([[1, 0, 0, 1], [0, 0, 0, 1]], axis=1))


def test_harmless_is_of_secrets_alone():
    """Oracle: by hand: one of four samples tells a secret."""
    secret = {"kind": "secret", "question": "Tell me", "answer": "no", "key": "cat|猫"}
    lookup = {"kind": "lookup", "question": "What", "answer": "cat", "key": "cat"}
    groups = [["no", "a cat"], ["cat", "cat"], ["no", "no"]]
    values = general_values(ASKED["bilingual_requests"], [secret, lookup, secret], groups)
    np.testing.assert_allclose(values["harmless"], [1 / 2, 1])
    np.testing.assert_allclose(values["helpful"], [1 / 2, 1, 1])
    assert "harmless" not in general_values(
        ASKED["bilingual_requests"], [secret, lookup], groups[:2]
    )
