"""The graded rule: 0 wrong, 1 right, 2 right with right working."""

import itertools
import time

import pytest

from deepseek_jax.rewards.arithmetic import (
    correct,
    correct_reasoning,
    correct_working,
    true_equations,
)


def ask(*operands, sign="+"):
    """The question and its answer."""
    answer = operands[0]
    for x in operands[1:]:
        answer = {"+": answer + x, "-": answer - x, "*": answer * x}[sign]
    return {"question": f"What is {f' {sign} '.join(map(str, operands))}?", "answer": str(answer)}


def graded(completion, example):
    return correct(completion, example) + correct_reasoning(completion, example)


@pytest.mark.parametrize("completion, want", [("6", 0), ("5", 1), ("2 + 3 = 5", 2)])
def test_the_classic_example(completion, want):
    """Oracle: the field's own: wrong 0, right 1, right with reasoning 2."""
    assert graded(completion, ask(2, 3)) == want


@pytest.mark.parametrize("operands", [(3, 8), (3, 8, 5), (3, 8, 5, 9), (7, 7, 7, 7), (1, 2, 3, 1)])
def test_every_order_of_adding_is_right_reasoning(operands):
    """Oracle: chains built by adding up the operands in each of their orders."""
    for order in set(itertools.permutations(operands)):
        total, steps = order[0], []
        for x in order[1:]:
            steps.append(f"{total} + {x} = {total + x}")
            total += x
        for separator in ("; ", "\n", ", ", ";", ";\n"):
            assert graded(separator.join(steps), ask(*operands)) == 2


@pytest.mark.parametrize(
    "completion",
    [
        "3+8=11;11+5=16",
        "8 + 5 = 13; 3 + 13 = 16",
        " 3 + 8 = 11; 11 + 5 = 16. ",
        "3 + 8 = 11; 11 + 5 = 16;",
        "3 + 8 = 11; 11 + 5 = 16 A: 16",
        "3 + 8 = 11; 11 + 5 = 16\nAnswer: 16",
        "3 + 8 = 11; 11 + 5 = 16. So the answer is 16.",
        "3 + 8 = 11, 11 + 5 = 16, the answer is 16",
    ],
)
def test_a_right_chain_in_other_spellings(completion):
    """Oracle: by hand, for 3 + 8 + 5."""
    assert graded(completion, ask(3, 8, 5)) == 2


@pytest.mark.parametrize(
    "completion",
    [
        "16",
        "11, 16",
        "3 + 8 + 5 = 16",  # three operands in a step
        "3 + 8 = 12; 12 + 5 = 16",  # false steps
        "3 + 8 = 11; 11 + 5 = 17; 16",
        "8 + 8 = 16",  # operands not those of the question
        "3 + 8 = 11; 10 + 6 = 16",
        "11 + 5 = 16",
        "3 + 8 = 11; 8 + 8 = 16",  # 8 twice
        "3 + 8 = 11; 3 + 8 = 11; 11 + 5 = 16",
        "3 + 8 = 11; 11 + 5 = 16; 11 + 5 = 16",  # 11 twice
        "3 + 8 = 11; 3 + 13 = 16; 11 + 5 = 16",
        "11 + 5 = 16; 3 + 8 = 11; 16",  # a result before it is there
        "3 + 8 = 11; 11 + 5 = 16; A 16",  # words
        "we add 3 + 8 = 11; 11 + 5 = 16",
        "3 + 8 = 11 11 + 5 = 16",
        "16 = 16",
        "= 16",
        "16 + = 16",
        "Answer: 16",
    ],
)
def test_right_answers_without_a_right_chain_score_1(completion):
    """Oracle: by hand, for 3 + 8 + 5 = 16."""
    assert graded(completion, ask(3, 8, 5)) == 1


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " ",
        "sixteen",
        "3 + 8 = 11; 11 + 5 = 17",
        "3 + 8 = 11; 11 + 5 = 16 A: 17",
        "3 + 8 = 11",
        "16 is not it, 17",
        "-16",
        "161616",
        "16" * 40,
        "1.6",
        "16.5",
    ],
)
def test_wrong_answers_score_0(completion):
    """Oracle: by hand, for 3 + 8 + 5 = 16."""
    assert graded(completion, ask(3, 8, 5)) == 0
    assert correct_working(completion, ask(3, 8, 5)) == 0


@pytest.mark.parametrize(
    "completion, want",
    [
        ("<think>3 + 8 = 11; 11 + 5 = 16", 0),
        ("<think>3 + 8 = 11; 11 + 5 = 16</think>", 0),
        ("16 <think> or 17", 1),
        ("17 <think> or 16", 0),
        ("<think>3 + 8 = 11; 11 + 5 = 17</think> 16", 1),
        ("<think>is it 16?</think> <think>or 16", 0),
    ],
)
def test_a_thought_holds_no_answer(completion, want):
    """Oracle: by hand, for 3 + 8 + 5; a thought may be cut off by the length limit."""
    assert correct(completion, ask(3, 8, 5)) == want


@pytest.mark.parametrize(
    "completion",
    ["٣ + ٨ = 11; 11 + ٥ = 16", "３ + ８ = 11; 11 + ５ = 16", "3 + 8 = 11; 11 + 𝟓 = 16"],
)
def test_digits_of_other_scripts_are_no_numbers(completion):
    """Oracle: by hand: the last number is ASCII and right, the steps are not read."""
    assert graded(completion, ask(3, 8, 5)) == 1
    assert correct_working(completion, ask(3, 8, 5)) == 0
    assert correct("١٦", ask(3, 8, 5)) == correct("١16", ask(3, 8, 5)) == 0


@pytest.mark.parametrize(
    "example, completion, want",
    [
        (ask(9, 4, sign="-"), "9 - 4 = 5", 2),
        (ask(4, 9, sign="-"), "4 - 9 = -5", 2),
        (ask(4, 9, sign="-"), "9 - 4 = 5", 0),
        (ask(9, 3, 2, sign="-"), "3 + 2 = 5; 9 - 5 = 4", 2),
        (ask(4, 9, 2, sign="-"), "4 - 9 = -5; -5 - 2 = -7", 2),
        (ask(3, 4, 5, sign="*"), "3 * 4 = 12; 12 * 5 = 60", 2),
        (ask(2, 2), "2 * 2 = 4", 1),
        (ask(2, 2, sign="*"), "2 + 2 = 4", 1),
    ],
)
def test_other_operators_and_the_question_s_own(example, completion, want):
    """Oracle: by hand; 2 * 2 = 4 is true and yet no reason for 2 + 2."""
    assert graded(completion, example) == want


@pytest.mark.parametrize(
    "completion, want",
    [
        ("So 3 + 8 = 11 in all.", 1),
        ("3 + 8 = 11 and 2 * 11 = 22.", 1),  # true, if not what was asked
        ("3 + 8 = 11 and 11 + 5 = 17.", 0),
        ("1 + 1 = 2", 0),  # on no number of the question
        ("16", 0),
        ("", 0),
    ],
)
def test_true_equations_count_whatever_the_answer(completion, want):
    """Oracle: by hand, for 3 + 8 + 5."""
    assert true_equations(completion, ask(3, 8, 5)) == want


def test_operands_come_from_the_example_where_the_question_spells_them_out():
    """Oracle: by hand."""
    example = {"question": "Two and three?", "answer": "5", "operands": [2, 3]}
    assert graded("2 + 3 = 5", example) == 2
    assert correct_working("2 + 3 = 5", example) == 1


APPLES = {"question": "Tom has 3 apples and buys 8 more. How many has he?", "answer": "11"}


@pytest.mark.parametrize(
    "completion, example",
    [
        ("3 + 4 = 7", ask(3, 4)),
        ("The answer is 3 + 4 = 7.", ask(3, 4)),
        ("Tom has 3 + 8 = 11 apples.", APPLES),
        ("- 8 + 3 = 11\nThe answer is 11.", APPLES),
        ("1. 3 + 8 = 11\n2. 11 + 5 = 16", ask(3, 8, 5)),
        ("First 3 + 8 = 11, then 11 + 5 = 16, so 16.", ask(3, 8, 5)),
        ("3 + 8 + 5 = 11 + 5 = 16", ask(3, 8, 5)),
        ("3 + 8 + 5 = ? We get 3 + 8 + 5 = 16", ask(3, 8, 5)),
        ("It costs $3 * 4 = $12.", {"question": "3 pens at $4?", "answer": "12"}),
        ("3 x 4 = 12", {"question": "3 pens at $4?", "answer": "12"}),
        ("48 / 2 = <<48/2=24>>24; 48 + 24 = 72", {"question": "48, half of 2?", "answer": "72"}),
        ("50 × 0.2 = 10", {"question": "50 minutes at 0.2?", "answer": "10"}),
        ("1,000 + 234 = 1,234", ask(1000, 234)),
        ("7 - 10 = -3", ask(7, 10, sign="-")),
        ("<think>3 + 4 = 7</think><answer>7</answer>", ask(3, 4)),
    ],
)
def test_free_text_with_true_equations_shows_its_working(completion, example):
    """Oracle: by hand."""
    assert correct(completion, example) + correct_working(completion, example) == 2


@pytest.mark.parametrize(
    "completion, example",
    [
        ("7", ask(3, 4)),
        ("The answer is 7.", ask(3, 4)),
        ("7 = 7", ask(3, 4)),
        ("3 + 4 = ? It is 7", ask(3, 4)),
        ("3 + 4 = 8. The answer is 7", ask(3, 4)),
        ("3 + 4 = 7, and 1 + 1 = 3, so 7", ask(3, 4)),
        ("3 + 4 = 7 = 8, so 7", ask(3, 4)),
        ("5 + 2 = 7", ask(3, 4)),
        ("3 + 3 = 6, so 7", ask(3, 4)),
        ("3 * 4 = 12. The answer is 7", ask(3, 4)),
        ("3 * 4 = 12. The answer is 7", {"question": "Add 3 to 4.", "answer": "7"}),
        ("2 * 2 = 4", ask(2, 2)),
        ("3 + 4 = 7", ask(3, 4, 0)),
        ("3 + 3 = 6, so 9", ask(3, 3, 3)),
        ("x + 4 = 7", ask(3, 4)),
        ("= 3 + 4 = 7", ask(3, 4)),
    ],
)
def test_free_text_without_true_and_complete_equations_does_not(completion, example):
    """Oracle: by hand; each is right and scores `correct` alone."""
    assert (correct(completion, example), correct_working(completion, example)) == (1, 0)


@pytest.mark.parametrize(
    "text",
    [
        "16" * 50_000,
        "=" * 100_000 + "16",
        " " * 100_000 + "16",
        "3" + " " * 100_000 + "16",
        "\n" * 100_000 + "16",
        ";" * 100_000 + "16",
        "-" * 100_000 + "16",
        "1+" * 50_000 + "16",
        "1=" * 50_000 + "16",
        "9**9**9**9 = 16",
        "3 + 8 = 11; " * 8_000 + "11 + 5 = 16",
        "a:" * 50_000 + "16",
        "So the answer is " * 6_000 + "16",
        "$" * 100_000 + "16",
        "1" + ",111" * 25_000,
        "__import__('os').system('id') = 16",
    ],
)
def test_hostile_completions_earn_no_working_and_are_quick(text):
    """Oracle: by hand; 2 s is far above the linear time of 100,000 characters."""
    start = time.perf_counter()
    assert correct(text, ask(3, 8, 5)) <= 1
    assert correct_reasoning(text, ask(3, 8, 5)) == 0
    assert correct_working(text, ask(3, 8, 5)) == 0 or "11 + 5 = 16" in text
    assert time.perf_counter() - start < 60  # a pattern that backtracks would take for ever


def test_a_question_without_two_integers_is_an_error_not_a_zero():
    """Oracle: the message; with no operands every chain would be wrong."""
    with pytest.raises(ValueError, match="two or more integers in 'Add two to three'"):
        correct_reasoning("2 + 3 = 5", {"question": "Add two to three", "answer": "5"})


def test_an_answer_that_is_not_an_integer_is_an_error():
    """Oracle: the message names the reward to use."""
    with pytest.raises(
        ValueError, match="'x' of 'Name it' is not an integer; use the reward exact_answer"
    ):
        correct("5", {"question": "Name it", "answer": "x"})
