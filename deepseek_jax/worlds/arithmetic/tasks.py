"""Sums and differences as questions, bare and in a sentence about things."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from deepseek_jax.data.tasks import Task
from deepseek_jax.worlds.arithmetic import corpus

NAMES = ("Tom", "Mia", "Ben", "Ana", "Sam", "Eva")
THINGS = ("apples", "books", "coins", "shells", "pencils", "stickers")
SUM_FORMS = (
    "What is {a} + {b}?",
    "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
    "{name} has {a} {things}. {other} has {b} {things}. How many {things} do they have together?",
)
DIFFERENCE_FORMS = (
    "What is {a} - {b}?",
    "{name} has {a} {things} and gives {b} of them to {other}. "
    "How many {things} does {name} have left?",
)
WORD_OPERANDS = range(2, 21)


def arithmetic_task(seed: int, num_held_out: int = 256):
    """Make sums with as many of three operands as of four, in both sets, all distinct.

    The held-out operands are tuples for which corpus.held_out is true, so no corpus document has
    them. `seed` chooses among them, and among the many tuples of four operands to train on.

    Raises:
        ValueError: If there are fewer held-out questions than num_held_out.
    """
    rng = np.random.default_rng(seed)
    train, held_out = [], []
    counts = corpus.OPERAND_COUNTS
    # Split num_held_out as evenly as whole numbers allow
    shares = np.diff(np.linspace(0, num_held_out, len(counts) + 1).astype(int))
    # Tuples of three are fewest, and training has as many of four
    smallest = _tuples(min(counts), held_out=False)
    for count, share in zip(counts, shares, strict=True):
        train += _draw(rng, _tuples(count, held_out=False), len(smallest))
        held_out += _draw(rng, _tuples(count, held_out=True), share)
    return Task([sum_example(x) for x in train], [sum_example(x) for x in held_out])


def word_arithmetic_task(seed: int, num_held_out: int = 256) -> Task:
    """Make sums and differences of two numbers of 2..20, bare or in a sentence about things.

    The held-out pairs of numbers are those for which corpus.held_out is true, in any sentence.
    Every pair is in a question of every form that fits it. `seed` chooses the names and things, and
    the held-out questions.

    Raises:
        ValueError: If there are fewer held-out questions than num_held_out.
    """
    rng = np.random.default_rng(seed)
    train: list[dict] = []
    held_out: list[dict] = []
    for operands in product(WORD_OPERANDS, repeat=2):
        examples = held_out if corpus.held_out(operands) else train
        examples += [_draw_words(rng, form, operands) for form in SUM_FORMS]
        a, b = operands
        if a > b:
            examples += [_draw_words(rng, form, operands) for form in DIFFERENCE_FORMS]
    return Task(train, _draw(rng, held_out, num_held_out))


def _tuples(count, *, held_out):
    operands = product(range(1, corpus.LARGEST_OPERAND + 1), repeat=count)
    return [list(x) for x in operands if corpus.held_out(x) == held_out]


def _draw(rng, items, n):
    """Draw n distinct items."""
    if n > len(items):
        raise ValueError(
            f"{n} different questions requested, but there are only {len(items)}; lower num_held_out."
        )
    return [items[i] for i in rng.choice(len(items), size=n, replace=False)]


def sum_example(operands: list[int]) -> dict:
    """Build the example with the sum of these operands as its question."""
    question, answer = corpus.question(operands), corpus.direct(operands)
    return {"question": question, "answer": answer, "operands": operands}


def word_example(
    form: str, operands: Sequence[int], name: str | None, other: str | None, things: str | None
) -> dict:
    """Build the example of one of SUM_FORMS or DIFFERENCE_FORMS.

    A form may ignore names and things, which may then be None.
    """
    a, b = operands
    question = form.format(a=a, b=b, name=name, other=other, things=things)
    answer = a - b if form in DIFFERENCE_FORMS else a + b
    return {"question": question, "answer": str(answer), "operands": [a, b]}


def _draw_words(rng, form, operands):
    name, other = (NAMES[i] for i in rng.choice(len(NAMES), size=2, replace=False))
    return word_example(form, operands, name, other, THINGS[rng.integers(len(THINGS))])


def worked_example(example: Mapping):
    """Return an example's working, which ends in its answer.

    It is "3 + 8 = 11; 11 + 5 = 16", or "9 - 4 = 5".
    """
    operands, answer = example["operands"], example["answer"]
    # Operands are positive, so their difference never equals their sum
    if sum(operands) == int(answer):
        return corpus.worked(operands)
    return f"{' - '.join(map(str, operands))} = {answer}"
