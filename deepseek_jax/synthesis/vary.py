"""Variants of a question with known answers: with other numbers, or with other names and things.

The questions are the puzzles of the bilingual world, the sums of the arithmetic world, and sums and
differences in words (worlds.arithmetic.tasks). The answer is computed from the parts of the new
question. `recomputed` checks it: it computes the answer only from the text.
"""

import re
from itertools import product

from deepseek_jax.rewards.number import number
from deepseek_jax.worlds.arithmetic import corpus as arithmetic
from deepseek_jax.worlds.arithmetic import tasks
from deepseek_jax.worlds.bilingual import puzzles as bilingual_puzzles
from deepseek_jax.worlds.bilingual.puzzle_rewards import EXPRESSION

KNOWN = "puzzles, sums, and sums and differences in words"
FIELDS = {
    "a": r"(?P<a>\d+)",
    "b": r"(?P<b>\d+)",
    "name": r"(?P<name>[A-Z]\w*)",
    "other": r"(?P<other>[A-Z]\w*)",
    "things": r"(?P<things>\w+)",
}
# A word of a question in words -> the operation
CUES = {"more": "+", "together": "+", "left": "-"}


def vary_numbers(rng, example):
    """Return the example with as many other numbers, in the same words, and with its new answer.

    It never returns a held-out question of a small world.

    Args:
        rng: np.random.Generator.
        example: An example of one of the supported kinds, see KNOWN.

    Raises:
        ValueError: The question is of another kind.
    """
    if example.get("kind") in bilingual_puzzles.KINDS:
        return _vary_puzzle(rng, example)
    words = _words(example["question"])
    if words is not None:
        return _vary_operands(rng, *words)
    operands = [int(x) for x in re.findall(r"\d+", example["question"])]
    if example["question"] != arithmetic.question(operands):
        raise ValueError(
            f"other numbers in {example['question'][:80]!r}: their answer cannot be computed; supported are "
            f"{KNOWN}; leave numbers out"
        )
    # draw_operands also draws how many operands there are, and never gives a held-out sum
    while True:
        drawn_operands = arithmetic.draw_operands(rng)
        if len(drawn_operands) == len(operands):
            return tasks.sum_example(drawn_operands)


def vary_names(rng, example):
    """Return the example with other names, another thing and the same answer.

    Returns None if it has no name.

    Raises:
        ValueError: The question is not of tasks.word_arithmetic_task.
    """
    words = _words(example["question"])
    if words is None:
        raise ValueError(
            f"other names in {example['question'][:80]!r}: supported are sums and differences in words; "
            "leave names out"
        )
    form, fields = words
    if "name" not in fields:
        return None
    unused_names = [name for name in tasks.NAMES if name not in fields.values()]
    name, other = rng.choice(unused_names, size=2, replace=False).tolist()
    things = rng.choice([thing for thing in tasks.THINGS if thing != fields["things"]]).item()
    return tasks.word_example(form, [int(fields[x]) for x in "ab"], name, other, things)


def recomputed(question: str):
    """Return the answer (str) of a question, computed only from its text.

    Returns None if the text cannot be parsed. The computation is independent of the code that
    writes questions: it parses an expression (rewards.number), tries the signs of a countdown one
    by one, and takes the operation of a question in words from CUES.
    """
    numbers = [int(x) for x in re.findall(r"\d+", question)]
    expression = EXPRESSION.search(question)
    if question.startswith((_phrase("en"), _phrase("zh"))):
        return _countdown(*numbers)
    if expression and re.search(r"[-+]", expression[0]):
        return str(number(expression[0]))
    operations = {CUES[word] for word in re.findall(r"[a-z]+", question) if word in CUES}
    if len(numbers) != 2 or len(operations) != 1:
        return None
    return str(number(f"{numbers[0]} {operations.pop()} {numbers[1]}"))


def _phrase(language):
    return bilingual_puzzles.PHRASES[language]["make"]


def _countdown(target, *numbers):
    """Return the numbers, in order, with signs that give the target, such as "9 - 4 + 2".

    Returns None if no signs do.
    """
    for signs in product("+-", repeat=len(numbers) - 1):
        signed_numbers = zip(signs, numbers[1:], strict=True)
        text = " ".join([str(numbers[0]), *(f"{sign} {x}" for sign, x in signed_numbers)])
        if number(text) == target:
            return text
    return None


def _vary_puzzle(rng, example):
    count = len(re.findall(r"\d+", example["problem"].partition(" ")[2]))
    # The target of a countdown is not one of the puzzle's numbers
    count -= example["kind"] == "countdown"
    while True:
        puzzle = bilingual_puzzles.draw_puzzle(rng, example["kind"])
        if len(puzzle.numbers) == count:
            return example | {
                "question": puzzle.question(example["language"]),
                "answer": puzzle.answer,
                "problem": puzzle.problem,
                "solution": bilingual_puzzles.solution(puzzle, example["language"]),
            }


def _words(question):
    """Return (form, {field: text}) of a question of tasks.word_arithmetic_task; None for others."""
    for form in tasks.SUM_FORMS + tasks.DIFFERENCE_FORMS:
        pattern = re.escape(form)
        for field, group in FIELDS.items():
            placeholder = re.escape(f"{{{field}}}")
            # A field that occurs twice must have the same text both times
            pattern = pattern.replace(placeholder, group, 1).replace(placeholder, f"(?P={field})")
        match = re.fullmatch(pattern, question)
        if match:
            return form, match.groupdict()
    return None


def _vary_operands(rng, form, fields):
    larger_first = form in tasks.DIFFERENCE_FORMS
    # Differences in words take a smaller number from a larger one
    pairs = [
        (a, b)
        for a, b in product(tasks.WORD_OPERANDS, repeat=2)
        if not arithmetic.held_out((a, b)) and (a > b or not larger_first)
    ]
    operands = list(pairs[rng.integers(len(pairs))])
    return tasks.word_example(form, operands, *(fields.get(x) for x in ("name", "other", "things")))
