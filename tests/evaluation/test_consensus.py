"""The majority of several answers."""

import pytest

from deepseek_jax.evaluation.consensus import majority


@pytest.mark.parametrize(
    "answers, agreed",
    [
        (["4", "5", "5"], "5"),
        (["4", "5", "5", "4"], "4"),
        ([None, None, "7"], "7"),
        ([None], None),
        ([], None),
    ],
)
def test_the_majority_is_the_most_frequent_answer_and_the_first_of_equals(answers, agreed):
    """Oracle: by hand."""
    assert majority(iter(answers)) == agreed
