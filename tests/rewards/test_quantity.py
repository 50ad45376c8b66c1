"""Numbers with their units, in all of a marked answer and in running text."""

from fractions import Fraction

import pytest

from deepseek_jax.rewards.quantity import last_quantity, read_quantity, said_quantity
from tests.rewards.forms import forms

# Each states 5, or the number before the colon
STATEMENTS = forms(r"""
    5 | 5.0 | +5 | $5 | US$5 | USD 5 | 5 USD | \( 5 \) | \left( 5 \right) | **5** | 5 apples |
    5 \text{ clips} |
    5cm | 5 cm² | 5 \text{ cm}^2 | 5\,\mathrm{cm}^2 | 5 km/h | $5/hour | $5 per week | 5 square feet |
    5 times a day | 5 years old | 5 pm | 5 more apples | 5 left | 5 in total | 5 people | 5^\circ | 5° |
    5个 | 5个苹果 | 5 千克 | 5 third graders | 5 negative numbers | 5 double rooms |
    5 cities | 5 properties | 5 fourth-year students | 5 fresh green round apples |
    5 \text{ (apples)} | x = 5 | f(2) = 5 | AB = 5 | \angle A = 5 | \text{Area} = 5 | 2 + 3 = 5 |
    x = 2 + 3 = 5 | 2 + 3 = 5 apples | \approx 5 | Answer: 5 | There are 5 apples. | Tom has 5 |
    the total is 5 | A total of 5 dollars | about 5 | it comes to 5 | 10/2 | \frac{10}{2} | 2 + 3 |
    -3: -3 | -3: negative 3 | -3: minus 3 | -3: −3 | -3: - 3 | 1000: 1,000 | 1000: 1{,}000 | 1000: 1\,000 |
    1500000: 1.5 million | 1500000: 1.5 \text{ million dollars} | 5000: 5 thousand | 5000: 5k | 5000000: 5M |
    5000000: 5 M | 60: 5 dozen | 60: 5 dozen eggs | 500000: 5 hundred thousand | 50000: 5万 |
    1/2: \frac{1}{2} \text{ cup} | 1: 1 foot | 720: 5 gross
""")
# None is a number with its unit
OTHERS = forms(r"""
    x = 6 = 5 | 4 = 6 = 5 | 2x = 5 | -x = 5 | x > 5 | x \neq 5 | 1 005 | 4 5 | 1,23 | 6E+5 | 1e5 | 0x10 |
    10 mod 5 | 10 divided by 5 | never 5 | not 5 | cannot be 5 | isn't 5 | 5 \text{ is wrong} | 5 is wrong |
    half of 5 | twice 5 | a third of 5 | less than 5 | at least 5 | out of 5 | the square root of 5 |
    5 squared | 5 factorial | 5 pi | 5 thousandfold | 5 myriad | 5 doubled | 5 thirds | 5 hundredths |
    5 half | 5 fresh green large round apples | (a) ** 5 |
    5 negative | 5 basis points | 5 and a half | 5 or six | 5 or more | 5 apples or six | 5 minus two |
    5 plus one | 5 point five | 5 times seven | 5 of 6 | [5] | \{5\} | [4, 5] | 5½ | ½5 | 5² | 5^2 | 5! |
    5' | 5/ | 5/xy | 5:3 | 5_2 | x_5 | 5x | 5 x | 5 xy | 5 x apples | 5\pi | \pi 5 | \sqrt{5} | f(5) | x5 |
    5 \pm 0 | 5打半 | 5分 | 5%% | ٣5 | 5\foo | 5 hours 30 minutes
""")


def pair(form):
    value, found, text = form.partition(": ")
    return (
        (Fraction(value), text)
        if found and value.lstrip("-").replace("/", "").isdigit()
        else (5, form)
    )


@pytest.mark.parametrize("want, text", [pair(form) for form in STATEMENTS])
def test_a_statement_is_its_number_times_the_scale(want, text):
    """Oracle: by hand."""
    quantity = read_quantity(text)
    assert quantity is not None and quantity.amounts() == {want}


@pytest.mark.parametrize("text", OTHERS)
def test_what_the_grammar_does_not_explain_is_no_quantity(text):
    """Oracle: by hand: none of these is a number with its unit."""
    assert read_quantity(text) is None


@pytest.mark.parametrize(
    "question, text, want",
    [
        ("How many dozen eggs?", "5 dozen eggs", {5, 60}),
        ("How many million?", "5 million", {5, 5 * 10**6}),
        ("How many millions?", "5 million", {5, 5 * 10**6}),
        ("How many eggs?", "5 dozen", {60}),
        ("How many were doubled?", "5 doubled", {5}),
        ("How many went?", "5 went home", {5}),
        ("What is the capacity of 2 tanks?", "a capacity of 5", {5}),
    ],
)
def test_a_word_of_the_question_is_a_unit(question, text, want):
    """Oracle: by hand."""
    assert read_quantity(text, question).amounts(question) == want


def test_a_fraction_of_a_number_is_another_one_whatever_is_asked():
    """Oracle: by hand."""
    assert read_quantity("half of 5", "What is half of 10?") is None
    assert last_quantity("It is a third of 5", "What is a third of 15?") is None


@pytest.mark.parametrize(
    "text, want",
    [
        ("So we get\n5", 5),
        ("He yells 3 + 2 = 5 times\n5", 5),
        ("He has 5 boxes left over\n\n5", 5),
        ("There are 5 more that float than not\n5", 5),
        ("The sum is 4\n-200", -200),
        ("Tom has 3 apples.\n- 7", 7),
        ("A: 5", 5),
        ("Tom did not pay, so 5 is left.", 5),
        ("The number of students who do not play is 5.", 5),
        ("so 20 - 15 = 5 students did not play", 5),
        ("It adds up to 5", 5),
        ("On 3 days it was $18 every day", 18),
        ("For 3 days it makes 5", 5),
        ("She pays 2 * 9 = $18/day", 18),
        ("(5)", 5),
        ("It is 5!", 5),
        ("Therefore 4 => 5", 5),
        ("She has 5 because the cat ate four", 5),
        ("x =\n5", 5),
    ],
)
def test_running_text_is_read_by_its_last_number(text, want):
    """Oracle: by hand."""
    assert last_quantity(text).amounts() == {want}


@pytest.mark.parametrize("text", ["2 +\n3", "4 or\n5", "It is [4,\n5]", "no number"])
def test_a_line_that_goes_on_belongs_to_the_next(text):
    """Oracle: by hand: none of these ends in a number that stands for itself."""
    assert last_quantity(text) is None


@pytest.mark.parametrize(
    "text, want",
    [
        ("5 because they are five", 5),
        ("5 because 2 + 3 = 5", None),
        ("2 + 2 = 5", None),
        ("5x = 5", None),
        ("4 apples = 5", None),
        ("5 - 2", 3),
        ("5 - 2 = 3", 3),
        ("5 of 6", None),
        ("5, 6", None),
        ("[5", None),
        ("There are 2 + 3 = 5", None),
        ("x = 5", 5),
        ("2 + 3 = 5", 5),
        ("**5**", 5),
        ("(5)", 5),
        ("5 times 3", None),
        ("5 + x", None),
        ("not 5", None),
        ("Tom has 5", None),
        ("B", None),
    ],
)
def test_the_first_number_is_what_is_said(text, want):
    """Oracle: by hand."""
    quantity = said_quantity(text)
    assert (None if quantity is None else quantity.value) == want
