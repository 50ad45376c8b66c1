"""Other questions of the same kind, whose answers are known: with other numbers, or other names and things.

For the puzzles of the bilingual world, the sums of the arithmetic one, and sums and differences in words
(worlds.arithmetic.tasks). An answer comes from what the question is made of; recomputed() finds it again
from the text alone.
"""

import re
from itertools import product

from deepseek_jax.rewards.answer import number
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
CUES = {"more": "+", "together": "+", "left": "-"}  # words that tell what to do with two numbers


def vary_numbers(rng, example):
    """The example with other numbers, in the same words and as many, and their answer. rng: np.Generator.

    What a small world holds out stays held out. Raises ValueError for a question of another kind.
    """
    if example.get("kind") in bilingual_puzzles.KINDS:
        return _vary_puzzle(rng, example)
    words = _words(example["question"])
    if words is not None:
        return _vary_operands(rng, *words)
    operands = [int(x) for x in re.findall(r"\d+", example["question"])]
    if example["question"] != arithmetic.question(operands):
        raise ValueError(
            f"other numbers in {example['question'][:80]!r}: its answer cannot be computed, known are "
            f"{KNOWN}; leave numbers out"
        )
    while True:
        drawn = arithmetic.draw_operands(rng)
        if len(drawn) == len(operands):
            return tasks.sum_example(drawn)


def vary_names(rng, example):
    """The example with other names and another thing, and the answer that it has; None if it names nothing.

    Raises ValueError for a question that is of no form of tasks.word_arithmetic_task.
    """
    words = _words(example["question"])
    if words is None:
        raise ValueError(
            f"other names in {example['question'][:80]!r}: they are known in sums and differences in words; "
            "leave names out"
        )
    form, fields = words
    if "name" not in fields:
        return None
    unused = [name for name in tasks.NAMES if name not in fields.values()]
    name, other = rng.choice(unused, size=2, replace=False).tolist()
    things = rng.choice([thing for thing in tasks.THINGS if thing != fields["things"]]).item()
    return tasks.word_example(form, [int(fields[x]) for x in "ab"], name, other, things)


def recomputed(question):
    """The answer that the text of a question asks for (str), None where it cannot be read.

    Not by the code that wrote the question: an expression in it is parsed (rewards.answer.number), signs of a
    countdown are tried one by one, and of a question in words a word says which operation is meant.
    """
    numbers = [int(x) for x in re.findall(r"\d+", question)]
    expression = EXPRESSION.search(question)
    if question.startswith((_phrase("en"), _phrase("zh"))):
        return _countdown(*numbers)
    if expression and re.search(r"[-+]", expression[0]):
        return str(number(expression[0]))
    cues = {CUES[word] for word in re.findall(r"[a-z]+", question) if word in CUES}
    if len(numbers) != 2 or len(cues) != 1:
        return None
    return str(number(f"{numbers[0]} {cues.pop()} {numbers[1]}"))


def _phrase(language):
    return bilingual_puzzles.PHRASES[language]["make"]


def _countdown(target, *numbers):
    """ "9 - 4 + 2", the numbers in their order with signs that make the target; None if none do."""
    for signs in product("+-", repeat=len(numbers) - 1):
        rest = zip(signs, numbers[1:], strict=True)
        text = " ".join([str(numbers[0]), *(f"{sign} {x}" for sign, x in rest)])
        if number(text) == target:
            return text
    return None


def _vary_puzzle(rng, example):
    count = len(re.findall(r"\d+", example["problem"].partition(" ")[2]))
    count -= example["kind"] == "countdown"  # its target is none of the numbers
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
    """(the form, its fields as text) of a question of tasks.word_arithmetic_task, None for others."""
    for form in tasks.SUM_FORMS + tasks.DIFFERENCE_FORMS:
        pattern = re.escape(form)
        for field, group in FIELDS.items():
            place = re.escape(f"{{{field}}}")
            pattern = pattern.replace(place, group, 1).replace(place, f"(?P={field})")
        found = re.fullmatch(pattern, question)
        if found:
            return form, found.groupdict()
    return None


def _vary_operands(rng, form, fields):
    larger_first = form in tasks.DIFFERENCE_FORMS
    pairs = [
        (a, b)
        for a, b in product(tasks.WORD_OPERANDS, repeat=2)
        if not arithmetic.held_out((a, b)) and (a > b or not larger_first)
    ]
    operands = list(pairs[rng.integers(len(pairs))])
    return tasks.word_example(form, operands, *(fields.get(x) for x in ("name", "other", "things")))
