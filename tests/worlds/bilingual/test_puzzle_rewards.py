"""Is a puzzle solved: chains of + and -, and countdowns."""

from itertools import permutations, product

import pytest

from deepseek_jax.worlds.bilingual.puzzle_rewards import puzzle_answer

CHAIN = {"question": "What is 9 - 4 + 2?", "answer": "7"}
COUNTDOWN = {"question": "Make 7 of 9, 4, 2.", "answer": "9 - 4 + 2"}


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<think>first 9 - 4 = 5, then 5 + 2 = 7</think><answer>7</answer>", 1.0),
        ("7", 1.0),
        ("先9 - 4 = 5，再5 + 2 = 7，得7", 1.0),
        ("first 9 - 4 = 5, then 5 + 2 = 7", 1.0),
        ("<think>7</think><answer>8</answer>", 0.0),
        ("<answer>8</answer>7", 0.0),
        ("<answer></answer>7", 0.0),
        ("<answer>7", 0.0),
        ("7</think>", 0.0),
        ("<answer>9 - 4 + 2</answer>", 0.0),  # the chain copied
        ("<answer>5 + 2</answer>", 0.0),
        ("<answer>77</answer>", 0.0),
        ("<answer>7 7</answer>", 0.0),
        ("<answer>-7</answer>", 0.0),
        ("<answer>the capital of Arland</answer>", 0.0),
        ("the capital of Arland", 0.0),
        ("", 0.0),
        ("7" * 5000, 0.0),
        ("٧", 0.0),
        ("<answer>７</answer>", 0.0),
    ],
)
def test_a_chain_asks_for_its_number(completion, score):
    """Oracle: by hand."""
    assert puzzle_answer(completion, CHAIN) == score


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<think>maybe</think><answer>9 - 4 + 2</answer>", 1.0),
        ("<answer> 2 + 9 - 4 </answer>", 1.0),
        ("9-4+2", 1.0),
        ("first 9 - 4 = 5, then 5 + 2 = 7 yes, so 9 - 4 + 2", 1.0),
        ("<answer>7</answer>", 0.0),
        ("<answer>9 - 4 + 2 + 0</answer>", 0.0),
        ("<answer>9 - 2</answer>", 0.0),
        ("<answer>9 + 4 - 2</answer>", 0.0),
        ("<answer>3 + 4</answer>", 0.0),
        ("<answer>9 - 4 + 2 = 7</answer>", 0.0),
        ("<answer>9 - 4 + 2 so</answer>", 0.0),
        ("<answer>9 - - 4 + 2</answer>", 0.0),
        ("<answer>٩ - 4 + 2</answer>", 0.0),
    ],
)
def test_a_countdown_asks_for_an_expression_of_exactly_its_numbers(completion, score):
    """Oracle: by hand."""
    assert puzzle_answer(completion, COUNTDOWN) == score


def test_every_expression_of_a_countdown_is_judged_by_its_value():
    """Oracle: Python's own evaluation of all orders, signs and subsets of the numbers."""
    for length in (2, 3):
        for numbers in permutations((9, 4, 2), length):
            for signs in product("+-", repeat=length - 1):
                text = str(numbers[0])
                text += "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True))
                right = length == 3 and eval(text) == 7
                assert puzzle_answer(f"<answer>{text}</answer>", COUNTDOWN) == right


def test_an_answer_that_is_no_expression_is_refused():
    """Oracle: the message names the answer."""
    with pytest.raises(ValueError, match="'Avila' of 'What is the capital"):
        puzzle_answer("7", {"question": "What is the capital of Arland?", "answer": "Avila"})
