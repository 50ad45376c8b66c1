"""Finding the final answer in a text, and comparing it."""

from fractions import Fraction

import pytest

from deepseek_jax.rewards.answer import (
    answer_key,
    contradicts,
    exact_answer,
    extract_answer,
    is_unread,
    marked_answer,
    same_answer,
)
from deepseek_jax.rewards.arithmetic import correct
from deepseek_jax.rewards.number import number
from tests.rewards.forms import forms


@pytest.mark.parametrize(
    "text, want",
    [
        (r"so the sum is \boxed{5}.", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {6}", "6"),
        (r"\boxed{4} no, \boxed{5", "4"),
        (r"\boxed{ 4 } is right, \boxed{4.0}", "4.0"),
        (r"\boxed{\frac{1}{2}} <answer>1/2</answer> #### 0.5", r"\frac{1}{2}"),
        (r"\boxed{} <answer>7</answer> #### 7", "7"),
        (r"<answer>The answer is \boxed{7} apples</answer>", "7"),
        ("<answer>The final answer is 7</answer>", "7"),
        ("#### 7\n#### $7", "$7"),
        ("#### Step 1\nso <answer>7</answer>", "7"),
        ("<answer>Monday</answer>\n#### 2. Check\nIt is.", "Monday"),
        ("The answer is 7 apples. <answer>7</answer>", "7"),
        ("The answer is 3 + 4 = 7. <answer>7</answer>", "7"),
        (r"The answer is $7x$, or \boxed{7x}", "7x"),
        (r"the answer is x = 7, \boxed{x = 7}", "x = 7"),
        (r"the answer is 3 times 4, \boxed{12}", "12"),
        (r"The answer is not 6. \boxed{7}", "7"),
        (r"<think>the answer is 6</think> \boxed{7}", "7"),
        ("<answer> 7 </answer>, 8", "7"),
        ("48/2 = <<48/2=24>>24\n#### 72", "72"),
        ("#### 1,234\nThat is 5.", "1,234"),
        ("it costs $1,234.50.", "1,234.50"),
        ("3 + 4 = 7", "7"),
        ("The answer is 7. Check: 10 - 3 = 7, and 3 + 3 = 6", "7"),
        ("The answer equals 7, not 6", "7"),
        ("Step 2: **7**", "7"),
        ("x=7", "7"),
        ("US$7", "7"),
        ("得7", "7"),
        ("Tom has 3 apples.\n- 7", "7"),
        ("3, 4, so 7", "7"),
        ("1\u200b7", "17"),
        ("11 - 5 = -6", "-6"),
        ("a half, or 1/2", "1/2"),
        ("<think>\\boxed{3}, or 4?</think> <answer>5</answer>", "5"),
        ("<think>3</think> 5", "5"),
        ("<think>3</think> 5 <think> or 6", "5"),
    ],
)
def test_extract_answer_takes_the_last_and_most_marked(text, want):
    """Oracle: by hand."""
    assert extract_answer(text) == want


@pytest.mark.parametrize(
    "text", ["", "no idea", "<think>5</think>", "<think>so 5", "\\boxed{x", "####", "-"]
)
def test_no_answer_is_none(text):
    """Oracle: by hand; none of these states one outside of its working."""
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    "text",
    forms(r"""
        \boxed{3} is wrong, \boxed{ 4 } is right |
        \boxed{\frac{1}{2}} <answer>7</answer> #### 8 and 9 | \boxed{} <answer>7</answer> #### 8 |
        <answer>3</answer> or <answer>7</answer> #### 8 | \boxed{5} <answer>6</answer> |
        <answer>5</answer> #### 6 | \boxed{5}. No: the answer is 6 | The answer is 6. \boxed{5} |
        \boxed{5}. The final answer is therefore: **6** | \boxed{5}. The answer is $x = 6$. |
        \boxed{5}. The answer is \(6\) | \boxed{5}. Answer: \frac{1}{6} |
        \boxed{5}. The answer is -5 | \boxed{5}. The answer is 5 million. |
        <answer>5</answer> <answer>five</answer> | <answer>Monday</answer> #### Tuesday |
        The answer is 5. The answer is 6. | <think>5</think> \boxed{x = 5} \boxed{x = 6}
    """)
    + ["#### 3\n#### $4"],
)
def test_two_answers_that_differ_are_no_answer(text):
    """Oracle: by hand. The last mark, or the boxed one, counted once: stating two paid for either."""
    assert contradicts(text)
    assert extract_answer(text) is None and marked_answer(text) is None
    assert exact_answer(text, {"question": "?", "answer": "5"}) == 0.0


@pytest.mark.parametrize(
    "text",
    forms(r"""
        11-5 | 11 -5 | 1 + 5 | 1 / 5 | 1 × 5 | 1 x 5 | 2**5 | $1$ + $5$ | 1:5 | 1,5 | 4 or 5 |
        4 and 5 | 4 to 5 | 4–5 | $4$ or $5$ | 4 times 5 | [4, 5] | (4, 5) | {4, 5} | x5 | x_5 |
        10^{-5} | \sqrt{5} | \sqrt[3]{5} | √5 | f(5) | \pm 5 | ±5 | ≠ 5 | ½5 | not 5 | isn't 5 |
        less than 5 | half of 5 | 2e5 | 0x5 | 1 005 | 6E+5 | 2 ** 5 | 10 mod 5 | 10 divided by 5 |
        never 5 | cannot be 5 | up to 5 | at least 5 | twice 5 | between 4 and 5 | 5 or six |
        5 and a half | 5 squared | 5 thousandfold | 5 myriad | 5½ | 5^2 | 5x | is 5 wrong, 5 is not it
    """),
)
def test_the_last_number_is_no_answer_where_it_is_a_part_of_something_else(text):
    """Oracle: by hand. The 5 of "11-5" was an answer: a copy of the question earned its last number."""
    assert extract_answer(text) is None
    assert exact_answer(f"so it is {text}.", {"question": "?", "answer": "5"}) == 0.0


def test_an_unmarked_number_is_not_a_marked_answer():
    """Oracle: by hand."""
    assert marked_answer("the answer is 5") is None


@pytest.mark.parametrize(
    "text, want",
    [
        ("5", 5),
        ("5.", 5),
        ("$5", 5),
        ("\\$5.00", 5),
        ("007", 7),
        ("-5", -5),
        ("- 5", -5),
        ("0.05", Fraction(1, 20)),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("1,234,567", 1234567),
        ("1,234.5", Fraction(2469, 2)),
        ("2 * (3 + 4) - 1", 13),
        ("2 ** 10", 1024),
        ("2 ** -1", Fraction(1, 2)),
        ("**72**", 72),
        ("45°", 45),
        (r"45^\circ", 45),
        ("−5", -5),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"-\dfrac12", Fraction(-1, 2)),
        ("1" * 30, int("1" * 30)),
        ("-" * 19 + "5", -5),
    ],
)
def test_number_is_exact(text, want):
    """Oracle: by hand, as integers and fractions: 0.1 + 0.2 is 3/10, which floats miss."""
    assert number(text) == want


@pytest.mark.parametrize(
    "text",
    forms(r"""
        x | 5x | 72 clips | 5% | 5 million | 1 2 | 1,23 | (1, 2) | 1/0 | 5 - | 5//2 | 1e5 | 0x10 | 1_0 |
        1j | 5² | 5^2 | 2\frac{1}{2} | minus 5 | 5½ | ٥
    """)
    + [""],
)
def test_number_refuses_what_is_not_one(text):
    """Oracle: by hand; words and units are quantity's."""
    assert number(text) is None


@pytest.mark.parametrize("answer", ["1234", "1,234", "$1,234", "1234.0", "1234.", "1,234 clips"])
@pytest.mark.parametrize("form", ["\\boxed{%s}", "<answer>%s</answer>", "#### %s", "it is %s"])
@pytest.mark.parametrize("gold", ["1234", "1,234", "some working: 5\n#### 1,234"])
def test_a_right_answer_scores_in_every_form(form, answer, gold):
    """Oracle: by hand; a grader that misses one of these gives 0 to everything, in silence."""
    assert exact_answer(form % answer, {"question": "?", "answer": gold}) == 1.0


@pytest.mark.parametrize("answer", ["1235", "-1234", "1234.5", "1.234", "12345", "123", "1234/2"])
@pytest.mark.parametrize("form", ["\\boxed{%s}", "<answer>%s</answer>", "#### %s", "it is %s"])
def test_a_wrong_answer_scores_nothing_in_every_form(form, answer):
    """Oracle: by hand."""
    assert exact_answer(form % answer, {"question": "?", "answer": "1234"}) == 0.0


@pytest.mark.parametrize(
    "answer, gold, want",
    [
        ("0.5", "1/2", 1.0),
        ("x^2 + 1", "X^2  +  1.", 1.0),
        ("B", "b", 1.0),
        ("B", "A", 0.0),
        ("Monday", "Tuesday", 0.0),
        ("5", "five", 0.0),
        ("٥", "5", 0.0),
        ("５", "5", 0.0),
        ("٣5", "5", 0.0),
        ("5 x", "5", 0.0),
        ("5%", "5", 0.0),
        ("5 percent", "5", 0.0),
        ("500%", "5", 0.0),
        ("5%", "5%", 1.0),
        ("5", r"5\%", 1.0),
        ("5 percent", "5%", 1.0),
        ("6%", "5%", 0.0),
    ],
)
def test_answers_compare_as_numbers_else_as_text(answer, gold, want):
    """Oracle: by hand."""
    assert exact_answer(f"\\boxed{{{answer}}}", {"question": "?", "answer": gold}) == want


@pytest.mark.parametrize("question", ["What percent is it?", "What percentage?", "How many %?"])
def test_a_percent_counts_where_the_question_asks_for_one(question):
    """Oracle: by hand."""
    for answer, want in (("5%", 1.0), ("5", 1.0), ("5 percent", 1.0), ("500%", 0.0), ("6%", 0.0)):
        assert (
            exact_answer(f"<answer>{answer}</answer>", {"question": question, "answer": "5"})
            == want
        )
        assert same_answer(answer, "5") == (answer == "5")


def test_a_percentage_and_a_number_are_two_votes():
    """Oracle: by hand."""
    assert answer_key("5%") == answer_key("5.0 percent") != answer_key("5")


@pytest.mark.parametrize(
    "text",
    forms(r"""
        it is 5 million | it is 5% | it is $5$ million | so 5² | so 5^2 | it is −5 |
        it is minus 5 | 5 k | 5½ | 5 and a half | 5 or six | 5 plus two | 5万 | 5 亿 | 5‰ | –5 |
        about 5k | 5 dozen | it is \frac{1}{5} | 5 hundredths | it is 5\%. | it is minus $5$ | \frac15 |
        5 quintillion | 5 gross | 5 lakh
    """),
)
def test_the_last_number_is_read_with_what_changes_it(text):
    """Oracle: by hand; none is 5."""
    assert exact_answer(text, {"question": "?", "answer": "5"}) == 0.0


@pytest.mark.parametrize(
    "written, plain, other",
    [
        (r"\text{A}", "A", "B"),
        (r"\textbf{(A)}", "A", "B"),
        ("(A)", "A", "B"),
        (r"(\text{A})", "a", "b"),
        ("1{,}000", "1000", "1"),
        (r"1{,}234{,}567", "1,234,567", "1234"),
        (r"1,\!000", "1000", "1"),
        (r"12 \text{ cm}", "12", "2"),
        (r"12\text{cm}", "12", "12.5"),
        (r"12\,\mathrm{cm}^2", "12", "144"),
        (r"1{,}000 \text{ dollars}", "$1000", "100"),
        (r"\text{Monday}", "Monday", "Tuesday"),
        (r"x~\text{and}~y", "x and y", "x or y"),
    ],
)
def test_how_latex_shows_an_answer_changes_nothing(written, plain, other):
    """Oracle: by hand, with the LaTeX on either side and on both; another answer stays another."""
    boxed = rf"\boxed{{{written}}}"
    for completion, gold in ((boxed, plain), (rf"\boxed{{{plain}}}", written), (boxed, written)):
        assert exact_answer(completion, {"question": "?", "answer": gold}) == 1.0
    assert exact_answer(boxed, {"question": "?", "answer": other}) == 0.0


def test_no_answer_at_all_scores_nothing():
    """Oracle: by hand."""
    assert exact_answer("", {"question": "?", "answer": "5"}) == 0.0


def test_an_empty_gold_answer_is_an_error():
    """Oracle: by hand; as a score it would be a 0 for every completion."""
    with pytest.raises(ValueError, match="'Add 2 to 3' has an empty answer"):
        exact_answer("5", {"question": "Add 2 to 3", "answer": " "})


FIVE = {"question": "?", "answer": "5"}


@pytest.mark.parametrize(
    "text",
    forms(r"""
        \boxed{x = 5} | <answer>x = 5</answer> | \boxed{2 + 3 = 5} | \boxed{5个} | \boxed{USD 5} |
        \boxed{5 \text{ (apples)}} | <answer>There are 5 apples.</answer> | #### Answer: 5 |
        2 + 3 = \boxed{5} | so x = **5** | 5 third graders | 5 negative numbers | 5 double rooms |
        5 fourth-year students | The first answer is 6. No, the final answer is \boxed{5} |
        The intermediate answer is 6, so \boxed{5} | A: 5 | <answer>\boxed{5}</answer> | - \boxed{5} |
        *\boxed{5}* | **Result:** $\boxed{5}$ | => \boxed{5} |
        \boxed{5} \text{ feet} | \boxed{10 \times 2 / 4 = 5} |
        <answer>She makes 10 / 2 = $5 every day.</answer> | so 10/2 = <<10/2=5>>5 |
        `5` | *5* | ***5*** | > 5 |
        \boxed{¥5} | \boxed{5\degree} | 10 - 5 = 5（个） | 所以答案是5。 | The answer is 10 - 5 = 5. |
        The answer is 5 (2 more than 3). | The answer is $10/2 = 5$. | 5 yrs
    """)
    + [
        "So we get\n5",
        "That is all\n\n5",
        "x =\n5",
        "\\boxed{5}\n2. Check: it is.",
        "\\boxed{5}\n\n9",
    ]
    + ["Answer: There are 7*8=56 slices.\nEach gets 56/8=7 slices, so 7 - 2 = 5.\n#### 5"]
    + ["Answer: 200*3 = 600 feet of line.\nThe caretaker needs 605-600 = 5 feet.\n#### 5"]
    + ["∴ 5", "\\boxed{5,}", "Answer: 2 + 3 = 5"]
    + ["**Answer:**\n1. 16 - 7 = 9\n2. 9 - 4 = 5\n\nThe answer is 5."]
    + ["#### Step 1\n16-7=9\n#### Step 2\n9-4=5\nSo she makes $5.", "#### Answer\n5"],
)
def test_forms_that_were_refused_are_paid(text):
    """Oracle: by hand: each states 5 and nothing else. `correct` asks for a number, which each is."""
    assert exact_answer(text, FIVE) == correct(text, FIVE) == 1.0


@pytest.mark.parametrize(
    "text",
    forms(r"""
        \boxed{x=6=5} | <answer>6<answer>5</answer></answer> | <!-- \boxed{5} --> | <!-- \boxed{5} |
        % \boxed{5} | The first answer is 5, the other is 6 \boxed{6} | The answer is 6. \boxed{5} |
        -\boxed{5} | 10 - \boxed{5} | \boxed{5}^2 | \boxed{5},000 | \boxed{5} million | 2\boxed{5} |
        \sqrt{\boxed{5}} | x \neq \boxed{5} | x > \boxed{5} | The answer is not \boxed{5}. |
        \boxed{5} is wrong. | \boxed{6 \boxed{5} | \fbox{6} \boxed{5} | 答案是6。\boxed{5} |
        The answer is 2 + 2 = 4. No, \boxed{5} | <answer>the square of 5</answer> |
        <answer>5 less than ten</answer> | <answer>5 to the power of two</answer> | 答案不是5 | 至少5 |
        \boxed{sqrt x = 5} | \boxed{x \not= 5} | \boxed{anything but 5} | \boxed{x, 5} | \boxed{(x, 5)} |
        \boxed{(-\infty, 5]} | \boxed{5 i} | \boxed{5 a} | 1 in 5 | 10 less 5 | x != 5 | 4 : 5 |
        #### 6 \to 5 | less than or equal to 5 | 5萬 | 5个半 | 第5
    """)
    + [r"\boxed{6} " + r"\boxed{5} " * 100]
    + ["2 + 3\n% so \\boxed{5}"],
)
def test_forms_that_were_paid_are_refused(text):
    """Oracle: by hand: each states another number than 5, several, or none."""
    assert exact_answer(text, FIVE) == correct(text, FIVE) == 0.0


@pytest.mark.parametrize(
    "question, answer, text, want",
    [
        ("?", "-3", "it is negative 3", 1),
        ("?", "-200", "The sum is 4\n-200", 1),
        ("?", "200", "The sum is 4\n-200", 0),
        ("?", "12", r"\boxed{12cm}", 1),
        ("?", "1500000", "1.5 million", 1),
        ("?", "1500000", r"\boxed{1.5 \text{ million}}", 1),
        ("?", "60", "5 dozen eggs", 1),
        ("How many dozen eggs?", "5", "5 dozen eggs", 1),
        ("How many million?", "5", r"\boxed{5 \text{ million}}", 1),
        ("How many?", "5", "5 dozen eggs", 0),
        ("Which?", "B", "The answer is B.", 1),
        ("Which?", "B", "We have 3. The answer is (B).", 1),
        ("Which?", "B", "The answer is B. The answer is A.", 0),
        ("Where?", "Paris", "The answer is Paris.", 1),
        ("Where?", "Paris", "The answer is Rome.", 0),
        ("Which?", "Room 5", "Gate 5", 0),
        ("?", "0.1", "0.10000001", 0),
        ("?", "101_2", "101", 0),
        ("?", "2 apples and 3 pears", r"\boxed{2 apples and 3 pears}", 1),
    ],
)
def test_units_scales_and_texts(question, answer, text, want):
    """Oracle: by hand."""
    assert exact_answer(text, {"question": question, "answer": answer}) == want


@pytest.mark.parametrize(
    "text, want",
    [
        (r"\boxed{five}", True),
        ("<answer>5 squared</answer>", True),
        ("4 or 5", True),
        (r"\boxed{6}", False),
        ("it is 6", False),
        ("The answer is 6. The answer is 7.", False),
        ("no idea", False),
        ("", False),
        ("<think>5 squared</think>", False),
    ],
)
def test_what_is_not_read_is_known(text, want):
    """Oracle: by hand: it states something, and the rules see no number in it. None of them is paid."""
    assert is_unread(text, FIVE) == want
    assert exact_answer(text, FIVE) == 0
    assert not is_unread(text, {"question": "?", "answer": "Paris"})
