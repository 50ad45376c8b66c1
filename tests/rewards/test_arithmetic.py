"""The graded rule: 0 wrong, 1 right, 2 right with right working."""

import itertools

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
    "completion, want",
    [
        ("5", 1),
        (r"\boxed{5}", 1),
        ("<answer>5 apples</answer>", 1),
        ("10 - 5 = 5", 1),
        ("Step 1\n- 5", 1),
        ("$5.00", 1),
        ("What is 10 - 5?", 0),
        ("10-5", 0),
        (r"\boxed{10 - 5}", 0),
        ("<answer>2+3</answer>", 0),
        (r"\boxed{\frac{10}{2}}", 0),
        ("it is 5 million", 0),
        ("5%", 0),
        ("5²", 0),
        (r"\boxed{6} or 5", 0),
        (r"\boxed{5} <answer>6</answer>", 0),
        (r"\boxed{5}. No: the answer is 6", 0),
    ],
)
def test_the_answer_is_a_number_and_no_copy_of_the_question(completion, want):
    """Oracle: by hand; the value of the question's own 10 - 5 is 5, and so is its last number."""
    assert correct(completion, ask(10, 5, sign="-")) == want


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


@pytest.mark.parametrize(
    "text",
    [
        "2 + 0 = 2",
        "0 + 2 = 2",
        "2 - 0 = 2",
        "2 * 1 = 2",
        "1 * 2 = 2",
        "2 / 1 = 2",
        "2 * 0 = 0",
        "2 = 2",
    ]
    + [
        "2 + 3 - 3 = 2",
        "2 - 2 = 0",
        "(2 + 0) = 2",
        "2 + (3 - 3) = 2",
        "2 * (3 / 3) = 2",
        "3 * (3 - 2) = 3",
        "2 / 2 = 1",
        "3 * 2 / 2 = 3",
        "2 + 0 = 2 = 2",
        "2 + 0 = +2 = 2",
    ],
)
def test_what_adds_nothing_is_no_working(text):
    """Oracle: by hand, for 2 + 3; alone, before the answer and 500 times."""
    example = ask(2, 3)
    for completion in (text, f"{text}\nso 5", f"{text}\n" * 500 + "so 5"):
        assert true_equations(completion, example) == correct_working(completion, example) == 0


@pytest.mark.parametrize(
    "text", ["<think>2 + 3 = 5", "5 <think>so 2 + 3 = 5", "<think>a</think> 5 <think>2 + 3 = 5"]
)
def test_working_in_an_open_thought_does_not_count(text):
    """Oracle: by hand, for 2 + 3."""
    assert true_equations(text, ask(2, 3)) == correct_working(text, ask(2, 3)) == 0


@pytest.mark.parametrize(
    "text, example",
    [
        ("2 + 0 = 2", ask(2, 0)),
        ("2 * 1 = 2", ask(2, 1, sign="*")),
        ("8 - 8 = 0", ask(8, 8, sign="-")),
        ("5 - 5 = 0, then 0 + 3 = 3", {"question": "5 less 5, and 3?", "answer": "3"}),
        ("1 / 4 * 8 = 2", {"question": "A quarter of 8?", "answer": "2"}),
        ("3 + 4 = 7 + 0 = 7", ask(3, 4)),
        ("3 + 3 = 6\n3 + 3 = 6\n6 + 6 = 12", ask(3, 3, 3, 3)),
        ("3 + 4 = 7\n" * 500, ask(3, 4)),
    ],
)
def test_a_term_of_the_question_and_an_earlier_result_are_working(text, example):
    """Oracle: by hand; a right line that repeats is one right line."""
    assert correct_working(text, example) == true_equations(text, example) == 1


def test_a_number_of_the_question_is_used_no_oftener_than_it_is_there():
    """Oracle: by hand: the question has 1 once, and 1 + 1 = 2 is true whatever is asked."""
    example = {"question": "Tom has 1 apple and 2 pears. How many are they?", "answer": "3"}
    assert true_equations("1 + 1 = 2\n" * 500, example) == true_equations("1 + 1 = 2", example) == 0
    assert true_equations("1 + 2 = 3", example) == correct_working("1 + 2 = 3", example) == 1
    assert true_equations("1 + 1 = 2", ask(1, 1)) == 1


def test_the_same_line_500_times_is_one_line():
    """Oracle: by hand: of the seven 3 of the question it uses two; and 6 + 3 is the line 3 + 6."""
    example = ask(*[3] * 7)
    assert correct_working("3 + 3 = 6\n" * 500 + "20 + 1 = 21", example) == 0
    assert correct_working("3 + 6 = 9\n6 + 3 = 9.0\n11 + 1 = 12", ask(3, 6, 3)) == 0
    assert correct_working("3 + 3 = 6\n" * 3 + "6 + 6 + 6 + 3 = 21", example) == 1


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
        (r"3 + 4 = \boxed{7}", ask(3, 4)),
        ("3 + 4 = **7**", ask(3, 4)),
        (r"\(3 \times 4 = 12\)", ask(3, 4, sign="*")),
        (r"$3 \cdot 4 = \boxed{12}$", ask(3, 4, sign="*")),
        (r"\frac{12}{4} = 3", {"question": "12 by 4?", "answer": "3"}),
        ("(2 + 3) * 4 = 20", {"question": "4 bags of 2 and 3?", "answer": "20"}),
        ("So it is (3 + 4 = 7).", ask(3, 4)),
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
def test_hostile_completions_earn_no_working(text):
    """Oracle: by hand. That time is linear test_long_completions.py shows."""
    assert correct(text, ask(3, 8, 5)) <= 1
    assert correct_reasoning(text, ask(3, 8, 5)) == 0
    assert correct_working(text, ask(3, 8, 5)) == 0 or "11 + 5 = 16" in text


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
