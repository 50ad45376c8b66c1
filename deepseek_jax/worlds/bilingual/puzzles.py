"""The bilingual world's puzzles: chains of + and -, and numbers with signs to find for a target.

sum: "What is 7 + 5 - 3 + 8?", worked "first 7 + 5 = 12, then 12 - 3 = 9, then 9 + 8 = 17".
countdown: "Make 7 of 9, 4, 2." The numbers stay in order, with a + or - before each but the first.
The working is a search, depth first and + before -: "first 9 + 4 = 13, then 13 + 2 = 15 no, then 13
- 2 = 11 no, or 9 - 4 = 5, then 5 + 2 = 7 yes". The answer is "9 - 4 + 2".
No intermediate number is negative or above bilingual.LARGEST_NUMBER.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.words import (
    ANSWER,
    END_ANSWER,
    END_THINK,
    PHRASES,
    THINK,
    WORKING,
)

# The kind with fewer puzzles first
KINDS = ("countdown", "sum")
# Numbers of operands in a sum; a countdown has three
OPERAND_COUNTS = (3, 4)
LARGEST_OPERAND = 9
# A countdown's first number, which is at least the sum of the others
COUNTDOWN_FIRST = range(5, 21)
# The largest left operand in any step of a puzzle
LARGEST_LEFT = LARGEST_OPERAND + max(COUNTDOWN_FIRST)


@dataclass(frozen=True)
class Puzzle:
    """A sum of these numbers with these signs, or the search for the signs that give its value.

    Attributes:
        signs: 1 or -1, one for each number but the first.
    """

    kind: str
    numbers: tuple[int, ...]
    signs: tuple[int, ...]

    @property
    def value(self):
        """The sum's result, or the countdown's target."""
        return _steps(self.numbers, self.signs)[-1][-1]

    @property
    def problem(self):
        """The puzzle without a language, which bilingual.held_out reads."""
        if self.kind == "sum":
            return f"sum {expression(self.numbers, self.signs)}"
        return f"countdown {self.value} {self.numbers}"

    @property
    def answer(self):
        """The right answer: "17", or for a countdown "9 - 4 + 2"."""
        return str(self.value) if self.kind == "sum" else expression(self.numbers, self.signs)

    def question(self, language: str):
        """Write the puzzle's text in "en" or "zh"."""
        phrases = PHRASES[language]
        if self.kind == "countdown":
            numbers = ", ".join(map(str, self.numbers))
            return f"{phrases['make']}{self.value}{phrases['out_of']}{numbers}{phrases['stop']}"
        chain = expression(self.numbers, self.signs)
        if language == "en":
            return f"{phrases['what']}{chain}{phrases['end']}"
        return f"{chain}{phrases['equals_what']}"

    def steps(self):
        """List the working step by step: tuples (role, a, sign, b, c, verdict).

        role is the role of the step's connective. c is a + sign * b. The verdict is None except at
        a countdown's leaf: "no" or, at the last leaf, "yes".
        """
        if self.kind == "sum":
            steps = _steps(self.numbers, self.signs)
            return [("then" if i else "first", *step, None) for i, step in enumerate(steps)]
        search_steps: list[tuple[str, int, int, int, int, str | None]] = []
        a, b, c = self.numbers
        for first_sign in (1, -1):
            middle = a + first_sign * b
            search_steps.append(
                ("again" if search_steps else "first", a, first_sign, b, middle, None)
            )
            for last_sign in (1, -1):
                is_right = (first_sign, last_sign) == self.signs
                verdict = "yes" if is_right else "no"
                search_steps.append(("then", middle, last_sign, c, middle + last_sign * c, verdict))
                if is_right:
                    return search_steps


def expression(numbers, signs):
    """Write "9 - 4 + 2" for (9, 4, 2) and (-1, 1)."""
    signed_numbers = zip(signs, numbers[1:], strict=True)
    return str(numbers[0]) + "".join(f"{_symbol(sign)}{number}" for sign, number in signed_numbers)


def write_steps(steps, languages):
    """Write the working as text, each step's connective and verdict in the step's language.

    Args:
        steps: See Puzzle.steps.
        languages: "en" or "zh" for each step.
    """
    step_texts = []
    for (role, a, sign, b, c, verdict), language in zip(steps, languages, strict=True):
        words = WORKING[language]
        step_texts.append(f"{words[role]}{a}{_symbol(sign)}{b} = {c}{words.get(verdict, '')}")
    return "".join(step_texts)


def tagged(thought: str, answer: str) -> str:
    """Write a completion in the format of the R1-Zero template (arXiv:2501.12948, table 1)."""
    return f"{THINK}{thought}{END_THINK}{ANSWER}{answer}{END_ANSWER}"


def solution(puzzle: Puzzle, language: str) -> str:
    """Write the right working, all in one language, and the answer, in tags, as cold-start data."""
    steps = puzzle.steps()
    return tagged(write_steps(steps, [language] * len(steps)), puzzle.answer)


def draw_puzzle(rng: np.random.Generator, kind: str, *, held_out: bool = False) -> Puzzle:
    """Draw a puzzle that is held out, or one that is not.

    Each of a countdown's four combinations of signs is the answer equally often, and only one of
    them makes the target.

    Args:
        rng: The only randomness.
    """
    while True:
        count = OPERAND_COUNTS[rng.integers(len(OPERAND_COUNTS))] if kind == "sum" else 3
        numbers = rng.integers(1, LARGEST_OPERAND + 1, size=count).tolist()
        if kind == "countdown":
            numbers[0] = int(rng.integers(COUNTDOWN_FIRST.start, COUNTDOWN_FIRST.stop))
        signs = tuple((1 - 2 * rng.integers(2, size=count - 1)).tolist())
        puzzle = Puzzle(kind, tuple(numbers), signs)
        if is_puzzle(puzzle) and bilingual.held_out(puzzle.problem) == held_out:
            return puzzle


def is_puzzle(puzzle: Puzzle):
    """Return whether a puzzle is valid.

    No intermediate number may be negative, and only one combination of a countdown's signs may be
    right.
    """
    if puzzle.kind == "sum":
        return all(c >= 0 for *_, c in _steps(puzzle.numbers, puzzle.signs))
    a, b, c = puzzle.numbers
    # If b == c, a + b - c and a - b + c make the same target
    return a >= b + c and b != c


def all_facts():
    """List every step a + b = c or a - b = c that a puzzle can need, as (a, sign, b)."""
    left_operands, right_operands = range(LARGEST_LEFT + 1), range(1, LARGEST_OPERAND + 1)
    return [
        (a, sign, b)
        for a, b, sign in product(left_operands, right_operands, (1, -1))
        if a + sign * b >= 0
    ]


def write_fact(a, sign, b):
    """Write "12 - 3 = 9"."""
    return f"{a}{_symbol(sign)}{b} = {a + sign * b}"


def _steps(numbers, signs):
    """Return (a, sign, b, c) of each step from the left."""
    steps, total = [], numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        steps.append((total, sign, number, total + sign * number))
        total += sign * number
    return steps


def _symbol(sign):
    return " + " if sign > 0 else " - "
