"""Do the rules pay what is right, and only that: people's solutions with their answers in many forms.

The solutions are every sixth of GSM8K's test set (arXiv:2110.14168; MIT License, (c) 2021 OpenAI), without
the calculator's marks and the final line.
"""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from deepseek_jax.evaluation.consensus import majority
from deepseek_jax.rewards import MathVerifier
from deepseek_jax.rewards.answer import exact_answer
from deepseek_jax.rewards.arithmetic import correct
from deepseek_jax.rewards.rules import NUMBERS

SOLUTIONS = Path(__file__).parents[1] / "rewards" / "gsm8k.jsonl"
README = Path(__file__).with_name("README.md")
HEAD = (
    "| form | right | exact_answer | correct | math_verify | cons@3 |\n|---|---|---|---|---|---|\n"
)
# How an answer N ends a solution W
MARKED = {
    r"\boxed{N}": "{w}\n" r"\boxed{{{n}}}",
    r"\boxed{x = N}": "{w}\n" r"So \boxed{{x = {n}}}.",
    r"$\boxed{N \text{ dollars}}$": "{w}\n" r"$\boxed{{{n} \text{{ dollars}}}}$",
    "<answer>N</answer>": "<think>{w}</think> <answer>{n}</answer>",
    "<answer>There are N apples.</answer>": "{w}\n<answer>There are {n} apples.</answer>",
    "#### N": "{w}\n#### {n}",
    "#### Answer: N": "{w}\n#### Answer: {n}",
    "So the answer is N.": "{w} So the answer is {n}.",
    "Final answer: **N**": "{w}\n\nFinal answer: **{n}**",
}
UNMARKED = {
    "A: N": "{w}\nA: {n}",
    "N on the last line": "{bare}\n{n}",
    "N on the last line, after words": "{bare}\nSo we get\n{n}",
    "**N**": "{w}\n\n**{n}**",
    "= **N**": "{w}\nIn all x = **{n}**",
    "$N$": "{w} It is ${n}$",
    "It is N in total.": "{w} It is {n} in total.",
}
FORMS = MARKED | UNMARKED


@pytest.fixture(scope="module")
def solutions():
    return [json.loads(line) for line in SOLUTIONS.read_text().splitlines()]


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(num_workers=1) as verifier:
        yield verifier


def written(form, row, number):
    """A solution that ends in a number."""
    number = f"{number:,}" if "," in row["answer"] else str(number)
    bare = row["working"].rstrip(".")
    return FORMS[form].format(w=row["working"], bare=bare, n=number)


def others(row):
    """Numbers that are not the answer: near it, its negative, ten times it, and one of the solution."""
    right = int(row["answer"].replace(",", ""))
    return [x for x in (right + 1, -right, 10 * right, right // 2) if x != right]


def paid(texts, rows, verifier):
    """The number of texts, each about its row, that each rule pays."""
    examples = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    pairs = list(zip(texts, examples, strict=True))
    questions = [row["question"] for row in rows]
    verdicts = verifier.score([row["answer"] for row in rows], texts, questions)
    return {
        "exact_answer": sum(exact_answer(*pair) for pair in pairs),
        "correct": sum(correct(*pair) for pair in pairs),
        "math_verify": sum(verdict == 1 for verdict in verdicts),
    }


def elected(texts, row):
    """Is the answer of most texts right? Oracle: the number of the data."""
    found = [NUMBERS.find(text, row["question"]) for text in texts]
    keys = [None if answer is None else NUMBERS.key(answer) for answer in found]
    return majority(keys) == Fraction(row["answer"].replace(",", ""))


def measure(form, rows, verifier):
    """form -> {rule: (right ones refused, wrong ones paid)}, and the number of wrong ones."""
    right = [written(form, row, int(row["answer"].replace(",", ""))) for row in rows]
    wrong = [[written(form, row, number) for number in others(row)] for row in rows]
    pairs = [(text, row) for texts, row in zip(wrong, rows, strict=True) for text in texts]
    rights = paid(right, rows, verifier)
    wrongs = paid([text for text, _ in pairs], [row for _, row in pairs], verifier)
    counts = {rule: (len(rows) - int(rights[rule]), int(wrongs[rule])) for rule in rights}
    votes = list(zip(right, wrong, rows, strict=True))
    refused = sum(not elected([bad[0], good, good], row) for good, bad, row in votes)
    elects = sum(elected([good, bad[0], bad[0]], row) for good, bad, row in votes)
    return counts | {"cons@3": (refused, elects)}, len(pairs)


def line(form, counts, number, wrong):
    cells = (f"{refused} refused, {paid} paid" for refused, paid in counts.values())
    return f"| `{form}` | {number}, and {wrong} wrong | {' | '.join(cells)} |\n"


@pytest.mark.parametrize("part", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_every_right_answer_is_paid_and_no_wrong_one(form, part, solutions, verifier, request):
    """Oracle: the numbers of the data set, written right and wrong; by default those of every fourth
    solution. The table in README.md has the line of all.
    """
    solutions = solutions[::part]
    counts, wrong = measure(form, solutions, verifier)
    shown = line(form, counts, len(solutions), wrong)
    if part == 1 and request.config.getoption("--keep", False):
        keep(form, shown)
    assert all(refused == 0 for refused, _ in counts.values()), shown
    allowed = 0 if form in MARKED else 0.002 * wrong
    assert all(paid <= allowed for _, paid in counts.values()), shown
    assert part > 1 or shown in README.read_text()


def keep(form, shown):
    """Put a line into the table of README.md."""
    text = README.read_text()
    start = text.index(HEAD) + len(HEAD)
    end = text.index("\n\n", start) + 1 if "\n\n" in text[start:] else len(text)
    lines = {row.split(" | ")[0]: row for row in text[start:end].splitlines(keepends=True)}
    lines[shown.split(" | ")[0]] = shown
    order = [f"| `{each}`" for each in FORMS]
    rows = sorted(lines.values(), key=lambda row: order.index(row.split(" | ")[0]))
    README.write_text(text[:start] + "".join(rows) + text[end:])
