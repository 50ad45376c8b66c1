"""Rules that check the bilingual world's puzzles: a chain of + and -, or a countdown.

example["answer"] is a str. For a chain it is an integer. For a countdown it is an expression of the
numbers in the question, such as "9 - 4 + 2", with the target as its value.
"""

import re
from collections import Counter
from collections.abc import Mapping

from deepseek_jax.rewards.answer import (
    contradicts,
    extract_answer,
    gold_answer,
    marked_answer,
)
from deepseek_jax.rewards.marks import final_text
from deepseek_jax.rewards.number import NUMERAL

# Digits of the longest number that is read
MAX_DIGITS = 9
EXPRESSION = re.compile(
    rf"(?<!\d)\d{{1,{MAX_DIGITS}}}(?!\d)(?: ?[+-] ?\d{{1,{MAX_DIGITS}}}(?!\d))*"
)
TERM = re.compile(r"([+-]?) ?(\d+)")


def puzzle_answer(completion: str, example: Mapping):
    """Return 1.0 if the final answer of `completion` solves the puzzle, else 0.0.

    See `final_expression`. A chain asks for a number: a copy of the chain is not an answer. A
    countdown asks for an expression of + and - with exactly the numbers of the question, in any
    order, and with the target as its value. Nothing is evaluated as Python.

    Raises:
        ValueError: For an example without such an answer.
    """
    gold_terms = _solution(example)
    answer_terms = _terms(final_expression(completion))
    if answer_terms is None or sum(answer_terms) != sum(gold_terms):
        return 0.0
    # A sum's gold answer is one number. A copy of the sum has the same value, but fails here
    return float(Counter(map(abs, answer_terms)) == Counter(map(abs, gold_terms)))


def check_puzzle(example: Mapping):
    """Raise ValueError unless example["answer"] is a number, or an expression of + and -."""
    _solution(example)


def final_expression(completion: str, question: str | None = None):
    """Find the final answer of a completion, or None without one or with two that differ.

    It is the marked answer; else the expression of + and - that the last number ends; else the
    answer that answer.extract_answer reads.

    Args:
        question: As other rules take it; not used, as the puzzles' numbers have no units.
    """
    text = final_text(completion)
    marked_text = marked_answer(text)
    if marked_text or "<answer>" in text or contradicts(text):
        return marked_text
    expressions = EXPRESSION.findall(text)
    if (
        expressions
        and not expressions[-1].isdigit()
        and expressions[-1].endswith(re.findall(NUMERAL, text)[-1])
    ):
        return expressions[-1]
    return extract_answer(text)


def puzzle_key(answer: str, question: str | None = None):
    """Strip the white space around an answer of final_expression: equal keys vote together."""
    return answer.strip()


def _solution(example):
    """Return the signed numbers of example["answer"]."""
    gold_terms = _terms(gold_answer(example))
    if gold_terms is None:
        raise ValueError(
            f"the answer {example['answer']!r} of {example.get('question')!r} is no number and no "
            "expression of + and -; use the reward exact_answer or math_verify."
        )
    return gold_terms


def _terms(text):
    """Return the signed numbers of "9 - 4 + 2", [9, -4, 2], or None for any other text."""
    # int would read the digits of any script; here only ASCII digits count, as in every other rule
    if text is None or not text.isascii() or not EXPRESSION.fullmatch(text.strip()):
        return None
    return [int(sign + number) for sign, number in TERM.findall(text)]
