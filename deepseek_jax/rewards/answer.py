r"""Read what a text states as its final answer, and compare it with the right answer.

A text marks its answer with \boxed{...}, <answer> tags or "####", and may say "the answer is 5"
(see marks.py). The content of a mark is read as a statement (see quantity.py). A text without a
mark is read more strictly: only its last number counts, and only if the sentence around it leaves
it whole.

If a text states two different answers, it has no answer. Otherwise a policy that states two answers
would be paid for either. An answer that cannot be read earns nothing, and is counted: see
`is_unread`.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from deepseek_jax.rewards.marks import final_text, find_marks, find_said
from deepseek_jax.rewards.number import plain
from deepseek_jax.rewards.quantity import Quantity, last_quantity, read_quantity, said_quantity

CHOICE = re.compile(r"\(\s*([a-z])\s*\)")
AROUND_SIGNS = re.compile(r"\s*([-+*/=,()<>^])\s*")
# Differences between two spellings of the same formula
LOOKS = re.compile(r"(?<=\\)[dt](?=frac)|[\s{}]")


class Answer(NamedTuple):
    """A final answer.

    Attributes:
        text: The answer as the text states it.
        mark: The kind of its marks.Mark, or None for an answer that nothing marks, such as the last
            number of a text.
        quantity: Its value and unit, or None if the answer is not a number.
    """

    text: str
    mark: str | None
    quantity: Quantity | None


def read_answer(text: str, question: str | None = None) -> Answer | None:
    """Return the final Answer that `text` states, or None if it states none or two that differ.

    The answer is the first of these that the text has:

    - an answer that it marks, or N where it says "the answer is N";
    - its last number, unless that is a part of something else, as 5 is in "4 or 5", "10 - 5" and
      "[4, 5]";
    - what it says the answer is, if that is no number, as in "the answer is B".

    Text before the last `</think>` is working: no answer is read from it.

    Args:
        text: A completion.
        question: Its words count as units of numbers.
    """
    text = final_text(text)
    answers = stated_answers(text, question)
    if answers:
        return None if _differ(answers, question) else answers[0]
    quantity = last_quantity(text, question)
    if quantity is not None:
        return Answer(_as_text(quantity), None, quantity)
    # "The answer is B", "The answer is (3, 4)"
    said_texts = {mark.text for mark in find_said(text, [])}
    return Answer(said_texts.pop(), "said", None) if len(said_texts) == 1 else None


def extract_answer(text: str, question: str | None = None) -> str | None:
    """Return the text (str) of the Answer that read_answer finds, or None."""
    answer = read_answer(text, question)
    return None if answer is None else answer.text


def stated_answers(text: str, question: str | None = None) -> list[Answer]:
    """List the Answers that a final text states: marks first, then numbers after "the answer is".

    The marked Answers have the order of marks.find_marks.
    """
    marks = find_marks(text)
    marked_answers = [
        Answer(mark.text, mark.kind, read_quantity(mark.text, question)) for mark in marks
    ]
    quantities = [said_quantity(mark.text, question) for mark in find_said(text, marks)]
    return marked_answers + [
        Answer(_as_text(quantity), "said", quantity)
        for quantity in quantities
        if quantity is not None
    ]


def marked_answer(text: str) -> str | None:
    """Return the answer (str) that `text` marks, or None.

    None means that the text marks no answer, or states two that differ.
    """
    answer = read_answer(text)
    return None if answer is None or answer.mark in (None, "said") else answer.text


def contradicts(text: str, question: str | None = None) -> bool:
    """Return True if `text` states two different answers outside of its thought.

    Both marked answers and "the answer is 5" count.
    """
    return _differ(stated_answers(final_text(text), question), question)


def exact_answer(completion: str, example: Mapping):
    """Return 1.0 if the final answer of `completion` equals example["answer"], else 0.0.

    Numbers are equal as fractions, other answers as text; see `same_answer`. If the gold answer is
    a text and the completion marks nothing, its answer is what it says after "the answer is", or
    else all text after its thought.

    An expression counts as its value: an answer of `2 + 3` is right where 5 is.
    `arithmetic.correct` asks for a number instead.

    Raises:
        ValueError: As gold_answer does.
    """
    gold, question = gold_answer(example), example.get("question")
    answer, text = read_answer(completion, question), final_text(completion)
    if is_number(gold) or (answer is not None and answer.mark):
        return float(answer is not None and same_answer(answer.text, gold, question))
    if contradicts(completion, question):
        return 0.0
    said_keys = {_text_key(mark.text) for mark in find_said(text, [])} or {_text_key(text)}
    return float(said_keys == {_text_key(gold)})


def is_number(gold: str):
    """Return True if a gold answer is a number, with or without a unit. "Room 5" is a text."""
    return read_quantity(gold, lead=False) is not None


def is_unread(completion: str, example: Mapping):
    """Return True if the answer should be a number and `completion` states one that is not read.

    Such a completion scores 0. Two answers that differ were read, so they return False.
    """
    if not is_number(gold_answer(example)) or contradicts(completion, example.get("question")):
        return False
    answer, text = read_answer(completion, example.get("question")), final_text(completion)
    has_statement = bool(find_marks(text) or re.search(r"\d", text))
    return has_statement and (answer is None or answer.quantity is None)


def gold_answer(example: Mapping) -> str:
    """Return example["answer"] (str), without working that precedes a mark in it.

    Raises:
        ValueError: If the answer is absent or empty, because every completion would then be wrong.
    """
    gold = str(example.get("answer", ""))
    gold = next((mark.text for mark in find_marks(final_text(gold))), gold.strip())
    if not plain(gold):
        raise ValueError(f"{example.get('question')!r} has an empty answer; correct the data.")
    return gold


def same_answer(answer: str, gold: str, question: str | None = None):
    r"""Return True if two answers are equal: as numbers if `gold` is one, else as texts.

    Texts are equal without regard to case, extra spaces, dollar signs, a final period, LaTeX's
    \text{...} and the parentheses around a choice such as (A).

    A % counts: 5% is not 5, unless the question or the gold answer has a % too.
    """
    gold_quantity = read_quantity(gold, question, lead=False)
    if gold_quantity is None:
        # An empty answer equals nothing, not even another empty one
        return _text_key(answer) == _text_key(gold) != ""
    quantity = read_quantity(answer, question)
    if quantity is None:
        return False
    same_unit = in_percent(gold, question) or (quantity.unit == "%") == (gold_quantity.unit == "%")
    return same_unit and bool(quantity.amounts(question) & gold_quantity.amounts(question))


def in_percent(gold: str, question: str | None):
    """Return True if the gold answer or the question has a % or a "percent"."""
    return "%" in plain(gold) or "%" in plain(str(question))


def answer_key(answer: str, question: str | None = None):
    """Return a Fraction or a str that is the same for equal answers, to compare and count them.

    Equal is defined by `same_answer`.
    """
    quantity = read_quantity(answer, question)
    if quantity is None:
        return _text_key(answer)
    value = min(quantity.amounts(question))
    return f"{value}%" if quantity.unit == "%" and not in_percent("", question) else value


def _text_key(answer):
    text = AROUND_SIGNS.sub(r"\1", plain(answer))
    choice = CHOICE.fullmatch(text)
    return choice[1] if choice else text


def _as_text(quantity):
    """Return a number with all that is needed to read it again: "1.5 million", "5%"."""
    percent = "%" if quantity.unit == "%" else ""
    return f"{quantity.text}{percent} {quantity.scale_word}".strip()


def _differ(answers, question):
    """Return True if the answers are not all the same. "x = 5", "5" and "5%" are."""
    return not all(_agree(answers[0], other, question) for other in answers[1:])


def _agree(first, other, question):
    if first.quantity is not None and other.quantity is not None:
        return bool(first.quantity.amounts(question) & other.quantity.amounts(question))
    return first.quantity is other.quantity and _formula_key(first.text) == _formula_key(other.text)


def _formula_key(text):
    return LOOKS.sub("", plain(text).replace("%", "").rpartition("=")[2])
