"""Questions with known answers, for reinforcement learning and for measuring it."""

from dataclasses import dataclass
from itertools import product

import grain
import numpy as np

from deepseek_jax.data.questions import distinct
from deepseek_jax.data.sources import load_jsonl_questions
from deepseek_jax.worlds.arithmetic import corpus as arithmetic

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


@dataclass(frozen=True)
class Task:
    """Questions to train on and, sharing none with them, questions to measure on.

    An example is a dict of question and answer, both str, and, where they are known, operands:
    the list of int that the question names.
    """

    train: list
    held_out: list


def arithmetic_task(seed, num_held_out=256):
    """The small world's sums, as many of three operands as of four on either side, all distinct.

    Held out are operand tuples for which arithmetic.held_out is true, which no corpus document
    asks. `seed` chooses among them, and among the many tuples of four operands to train on.
    Raises ValueError for more held-out questions than there are.
    """
    rng = np.random.default_rng(seed)
    train, kept = [], []
    counts = arithmetic.OPERAND_COUNTS
    shares = np.diff(np.linspace(0, num_held_out, len(counts) + 1).astype(int))
    smallest = _tuples(min(counts), held_out=False)
    for count, share in zip(counts, shares, strict=True):
        train += _draw(rng, _tuples(count, held_out=False), len(smallest))
        kept += _draw(rng, _tuples(count, held_out=True), share)
    return Task([sum_example(x) for x in train], [sum_example(x) for x in kept])


def word_arithmetic_task(seed, num_held_out=256):
    """Sums and differences of two numbers of 2..20, bare or in a sentence about things.

    Held out are pairs of numbers for which arithmetic.held_out is true, whatever the sentence.
    Every pair stands once in every form that fits it; `seed` chooses the names and things, and
    the held-out questions. Raises ValueError for more of these than there are.
    """
    rng = np.random.default_rng(seed)
    train, kept = [], []
    for operands in product(WORD_OPERANDS, repeat=2):
        examples = kept if arithmetic.held_out(operands) else train
        examples += [_draw_words(rng, form, operands) for form in SUM_FORMS]
        a, b = operands
        if a > b:
            examples += [_draw_words(rng, form, operands) for form in DIFFERENCE_FORMS]
    return Task(train, _draw(rng, kept, num_held_out))


def gsm8k_task(path, num_held_out=256, *, seed=0):
    """Questions of a jsonl file in GSM8K's format, `num_held_out` of them, by seed, held out.

    Raises ValueError, as load_jsonl_questions does, for a malformed file, and for one that would leave
    nothing to train on.
    """
    examples = distinct(load_jsonl_questions(path))
    if num_held_out >= len(examples):
        raise ValueError(
            f"num_held_out={num_held_out} leaves nothing of the {len(examples)} questions of {path} to train "
            "on; lower it"
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    kept = [examples[i] for i in order[:num_held_out]]
    return Task([examples[i] for i in order[num_held_out:]], kept)


class QuestionStream:
    """Examples without end, each once an epoch, in an order set by `seed` and new each epoch.

    position: how many were taken so far. It is all of the state: save it, and set it to resume.
    """

    def __init__(self, examples, seed):
        if not examples:
            raise ValueError("there are no questions to draw from; give at least one example.")
        self._endless = grain.MapDataset.source(examples).shuffle(seed).repeat()
        self.position = 0

    def take(self, n):
        """The next n examples, as a list."""
        start, self.position = self.position, self.position + n
        return [self._endless[i] for i in range(start, self.position)]


def _tuples(count, *, held_out):
    operands = product(range(1, arithmetic.LARGEST_OPERAND + 1), repeat=count)
    return [list(x) for x in operands if arithmetic.held_out(x) == held_out]


def _draw(rng, items, n):
    """n different ones of `items`."""
    if n > len(items):
        raise ValueError(
            f"{n} different questions asked for where there are {len(items)}; "
            "lower config.data.num_held_out."
        )
    return [items[i] for i in rng.choice(len(items), size=n, replace=False)]


def sum_example(operands):
    """The example that asks for a sum of the small world."""
    question, answer = arithmetic.question(operands), arithmetic.direct(operands)
    return {"question": question, "answer": answer, "operands": operands}


def word_example(form, operands, name, other, things):
    """The example of one of SUM_FORMS or DIFFERENCE_FORMS; names and things that it lacks are not read."""
    a, b = operands
    question = form.format(a=a, b=b, name=name, other=other, things=things)
    answer = a - b if form in DIFFERENCE_FORMS else a + b
    return {"question": question, "answer": str(answer), "operands": [a, b]}


def _draw_words(rng, form, operands):
    name, other = (NAMES[i] for i in rng.choice(len(NAMES), size=2, replace=False))
    return word_example(form, operands, name, other, THINGS[rng.integers(len(THINGS))])
