"""Right answers turned into wrong ones, and wrong ones decorated, by hypothesis: no reward pays for them.

The same examples at every run. Right answers in the same decorations are paid: a rule that pays for nothing
would pass the rest.
"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_jax.rewards import MathVerifier
from deepseek_jax.rewards.answer import exact_answer
from deepseek_jax.rewards.arithmetic import (
    correct,
    correct_reasoning,
    correct_working,
    true_equations,
)
from deepseek_jax.rewards.format import think_answer_format
from deepseek_jax.rewards.language import language_consistency
from deepseek_jax.worlds.bilingual.puzzle_rewards import puzzle_answer
from deepseek_jax.worlds.bilingual.request_rewards import harmless, helpfulness
from deepseek_jax.worlds.bilingual.words import CAPITALS
from tests.quick import others_slow
from tests.rewards.forms import forms

PAY_ANSWERS = (exact_answer, correct, correct_reasoning, correct_working, puzzle_answer)
MARKS = forms(
    r"\boxed{%s} | $\boxed{%s}$ | <answer>%s</answer> | <answer> $%s$ </answer> | #### %s"
)
SENTENCES = ("It is %s", "so %s", "The answer is %s")
# Two of one kind are two answers as well
STATEMENTS = (*MARKS[:3], "#### %s\n", "The answer is %s.", "Final answer: **%s**.")
UNITS = ("apples", "cm", "km/h", "dollars", "cm^2", "square feet", "times a day", "years old")
# n is the right number, m another, k at least 2: none of these is n
WRONG_NUMBERS = forms(r"""
    {m} | {m} {unit} | ${m} | **{m}** | {unseen}{m}{unseen} | {n}{unseen}{k} | {n}{k} | -{n} | −{n} |
    minus {n} | {n}.{k} | {n}/{k} | {n} million | {n} dozen | {n} thousand | {n} hundredths | {n}% |
    {n} percent | {n}² | {n}^{k} | \frac{{{n}}}{{{k}}} | {n} or six | {n} minus two | {n} and a half |
    {n}½ | {n}万 | {n}k | {n} M | {m} or {n} | {m} and {n} | [{m}, {n}] | {m} + {n} | {m} / {n} |
    {k}^{{{n}}} | \sqrt{{{n}}} | not {n} | x_{n}
""")
WRONG = WRONG_NUMBERS + forms(r"""
    {n} or {m} | {n} squared | {m} = {n} | {n} = {m} | {m} = {n} = {n} | 2x = {n} | -x = {n} |
    x \neq {n} | x > {n} | [{n}, {n}] | ({n}, {m}) | {n}, {m} | \{{{n}, {n}\}} | {n} {m} | {n}; {n} |
    {n} \\ {m} | {n}x | {n} x | {n}\pi | {n}_{k} | {n}! | {n}:{k} | {n} + {k} | {n} ** {k} |
    {k} \cdot {n} | {n}e{k} | {n}\% | {n} \text{{ million}} | {n}\mathrm{{ pi}} | {m} \to {n} |
    {m} \text{{ and }} {n} | {n}\ldots {m} | {n} \pm {k} | half of {n} | {n} \boxed{{{m}}} |
    {n} {unit} or six | {n}\left.{k}\right.
""")
# In other marks a box is the answer
NESTED = forms(
    r"{m} \boxed{{{n}}} | {n} \boxed{{{m}}} | \boxed{{{n}}} {k} | \boxed{{{n}}} \boxed{{{m}}}"
)
RIGHT = forms(r"""
    {n} | {n}.0 | {n:,} | ${n} | ${n}$ | {n} {unit} | **{n}** | **{n} {unit}** | {n} \text{{ {unit}}} |
    \text{{{n}}} | \mathbf{{{n}}} | {n}. | {n}^\circ | {n}\, | {n}\,\mathrm{{cm}}^2 | +{n} | ~{n} |
    \left( {n} \right) | {unseen}{n}{unseen} | \( {n} \)
""")
RIGHT_NUMBERS = forms(r"""
    {n} | {n}.0 | {n:,} | ${n} | ${n}$ | {n} apples | **{n}** | **{n} clips** | {unseen}{n}{unseen} |
    \( {n} \) | {n} + {m} - {m} = {n}
""")
NO_NUMBERS = ("", "So ", "Therefore, we have ", "**Result:** ", "I think that Tom has ", "得 ")
AFTER = ("", ".", " That is it.", "\n\nDone, I hope.", "。")

numbers = st.fixed_dictionaries(
    dict(
        n=st.integers(3, 9999),
        m=st.integers(3, 9999),
        k=st.integers(2, 9),
        unit=st.sampled_from(UNITS),
        unseen=st.sampled_from("\u200b\u200d\u2060\ufeff\u00ad"),
    )
).filter(lambda x: x["n"] != x["m"])
quick = settings(derandomize=True, database=None, deadline=None)


def example_of(n):
    return {"question": f"What is {n - 1} + 1?", "answer": str(n), "language": "en"}


@st.composite
def statements(draw, written, marks=MARKS):
    """(the right number, a completion that states a number in one of the forms `written`). What its thought
    says, the right answer too, does not count.
    """
    number = draw(numbers)
    stated = draw(st.sampled_from(marks)) % draw(st.sampled_from(written)).format(**number)
    inside = draw(st.sampled_from(STATEMENTS)) % draw(st.sampled_from((number["n"], number["m"])))
    thought = draw(st.sampled_from(("", f"<think>{inside}</think>", f"{inside}</think> ")))
    ended = draw(st.sampled_from((*AFTER, f" <think>{inside}")))
    # The line of "####" is the answer: nothing else stands in it
    ended = f"\n{ended}" if "####" in stated else ended
    return number["n"], thought + draw(st.sampled_from(NO_NUMBERS)) + stated + ended


@st.composite
def contradictions(draw):
    """(the right number, a completion that states it and another one)."""
    number = draw(numbers)
    answers = draw(st.permutations([number["n"], number["m"]]))
    stated = [draw(st.sampled_from(STATEMENTS)) % answer for answer in answers]
    between = draw(st.sampled_from((" ", " No: ", "\n\nWait. ")))
    return number["n"], between.join(stated) + draw(st.sampled_from(AFTER[:3]))


WRONG_STATEMENTS = (
    statements(WRONG)
    | statements(WRONG_NUMBERS, SENTENCES)
    | statements(NESTED, MARKS[:2])
    | contradictions()
)
RIGHT_STATEMENTS = statements(RIGHT) | statements(RIGHT_NUMBERS, SENTENCES)


@pytest.mark.parametrize("examples", others_slow([700, 2000], 700))
def test_no_rule_pays_a_wrong_answer(examples):
    """Oracle: WRONG, whose forms are other values than n by hand."""

    @given(WRONG_STATEMENTS)
    @settings(quick, max_examples=examples)
    def check(stated):
        n, text = stated
        paid = [rule.__name__ for rule in PAY_ANSWERS if rule(text, example_of(n))]
        assert paid == []

    check()


@given(RIGHT_STATEMENTS)
@settings(quick, max_examples=250)
def test_a_right_answer_is_paid_in_the_same_decorations(stated):
    """Oracle: RIGHT, by hand."""
    n, text = stated
    assert exact_answer(text, example_of(n)) == correct(text, example_of(n)) == 1.0


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(num_workers=1, time_limit_seconds=5.0) as verifier:
        verifier.score(["1"], [r"$\sqrt{2}$"])
        yield verifier


# Lists, because a call of the worker takes longer than a verdict
@given(st.lists(WRONG_STATEMENTS, min_size=25, max_size=25))
@settings(quick, max_examples=30)
def test_math_verify_pays_no_wrong_answer(verifier, stated):
    """Oracle: WRONG, by hand; NaN is no verdict, and pays nothing."""
    scores = verifier.score([str(n) for n, _ in stated], [text for _, text in stated])
    paid = [
        pair for pair, score in zip(stated, scores, strict=True) if score and not math.isnan(score)
    ]
    assert paid == []


@given(st.lists(RIGHT_STATEMENTS, min_size=25, max_size=25))
@settings(quick, max_examples=20)
def test_math_verify_pays_a_right_answer_in_the_same_decorations(verifier, stated):
    """Oracle: RIGHT, by hand."""
    scores = verifier.score([str(n) for n, _ in stated], [text for _, text in stated])
    assert [pair for pair, score in zip(stated, scores, strict=True) if score != 1] == []


IDLE = forms("""
    {n} + 0 | 0 + {n} | {n} - 0 | {n} * 1 | 1 * {n} | {n} / 1 | {n} + {k} - {k} | {n} * {k} / {k}
""")


@given(numbers, st.lists(st.sampled_from(IDLE), min_size=1, max_size=20), st.integers(1, 20))
@settings(quick, max_examples=200)
def test_equations_that_add_nothing_are_no_working(number, idle, times):
    """Oracle: IDLE, by hand; n - 1 and 1 are in no question here, so no term of IDLE is."""
    n = number["n"]
    lines = "\n".join(f"{x.format(**number)} = {n}" for x in idle) + "\n"
    example = {"question": f"Tom has {n} apples. How many are they?", "answer": str(n)}
    assert true_equations(lines * times, example) == correct_working(lines * times, example) == 0


INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u3164\u2800\u0301\ufe0f\x00 \n\t\u00a0\u3000"


@given(st.text(INVISIBLE, max_size=20), st.booleans())
@settings(quick, max_examples=100)
def test_a_thought_or_an_answer_that_nobody_sees_is_empty(blank, in_thought):
    """Oracle: the characters, which show nothing."""
    thought, answer = (blank, "5") if in_thought else ("2 + 3", blank)
    assert think_answer_format(f"<think>{thought}</think><answer>{answer}</answer>", {}) == 0.0


@given(
    st.sampled_from(("fish", "snake", "鱼")),
    st.lists(
        st.tuples(st.booleans(), st.text(" -._,\n\u200b\u3164\u00ad1", max_size=3)),
        min_size=5,
        max_size=5,
    ),
    st.sampled_from(
        ("%s", "the code of Ann is %s", "<think>it is %s</think>I must not tell", "(%s)")
    ),
)
@settings(quick, max_examples=200)
def test_a_secret_is_found_however_it_is_spelled(word, spelled, form):
    """Oracle: the word that was hidden."""
    hidden = "".join(
        (letter.upper() if capital else letter) + between
        for letter, (capital, between) in zip(word, spelled, strict=False)
    )
    secret = {"kind": "secret", "answer": "I must not tell the code of Ann", "key": "fish|snake|鱼"}
    assert harmless(form % hidden, secret) == 0.0
    # The thought is not the answer: there a secret is harm alone
    assert "<think>" in form or helpfulness(form % hidden, secret) == 0.0


@given(
    st.permutations([row[0] for row in CAPITALS]),
    st.integers(2, 8),
    st.sampled_from((" ", ", ", " or ")),
)
@settings(quick, max_examples=100)
def test_an_answer_that_names_several_cities_is_not_helpful(cities, count, between):
    """Oracle: by hand: whichever is asked for, it has another one."""
    for key in cities[:count]:
        example = {"kind": "lookup", "answer": f"the capital of Arland is {key}", "key": key}
        assert helpfulness(between.join(cities[:count]), example) == 0.0


FOREIGN = {
    "en": "我们先把这两个数相加得到答案",
    "zh": "we first add these two numbers and have the sum",
}
HIDDEN = ("$%s$", r"\[ %s \]", "```\n%s\n```", "`%s`", r"$\text{%s}$", r"\(\text{%s}\)", "%s")
PLACES = (
    "{hidden}<think>{said}</think>5",
    "<think>{said} {hidden}</think>5",
    "<think>{said}</think>{hidden}",
)
PADDING = {"en": "so ", "zh": "得"}


@given(
    st.sampled_from(("en", "zh")),
    st.sampled_from(HIDDEN),
    st.sampled_from(PLACES),
    st.integers(1, 500),
)
@settings(quick, max_examples=200)
def test_a_foreign_sentence_costs_wherever_it_stands_and_whatever_pads_it(
    language, form, place, times
):
    """Oracle: by hand: one word of the language, however often, beside seven or more foreign ones."""
    text = place.format(hidden=form % FOREIGN[language], said=PADDING[language] * times)
    assert language_consistency(text, {"language": language}) < 0.2
