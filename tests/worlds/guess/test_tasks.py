"""Games to train on and to measure on, and the rule that looks for the number."""

from collections import Counter

import pytest

from deepseek_jax.worlds.guess.tasks import guess_task, guessed


def test_every_number_is_to_be_guessed_equally_often():
    """Oracle: counts: once in training, eight times in 128 held-out games; a shorter list has no number more
    than once more than another.
    """
    task = guess_task(seed=0)
    assert Counter(x["number"] for x in task.train) == dict.fromkeys(range(1, 17), 1)
    assert Counter(x["number"] for x in task.held_out) == dict.fromkeys(range(1, 17), 8)
    assert set(Counter(x["number"] for x in guess_task(0, 40).held_out).values()) == {2, 3}
    assert len({x["question"] for x in task.train + task.held_out}) == 1
    assert all(x["answer"] == str(x["number"]) for x in task.train)


def test_the_seed_alone_decides_the_order():
    """Oracle: two tasks of one seed, and another seed."""
    assert guess_task(seed=4) == guess_task(seed=4) != guess_task(seed=5)


@pytest.mark.parametrize(
    "text, score",
    [("11", 1), ("7higher\n14lower\n11", 1), ("11higher\n1", 0), ("7higher\n", 0), ("", 0)],
)
def test_a_number_is_guessed_where_the_last_turn_is_it(text, score):
    """Oracle: by hand."""
    assert guessed(text, {"answer": "11", "number": 11}) == score
