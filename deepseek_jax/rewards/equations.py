"""Find equations in free text, and tell if they show working or add nothing.

Tests: tests/rewards/test_arithmetic.py.
"""

import re
from collections import Counter

from deepseek_jax.rewards.number import (
    BOLD,
    FULL_WIDTH,
    LAYOUT,
    NUMERAL,
    number,
    with_operators,
    without_fractions,
)

# A minus after a digit subtracts
SIGN = r"(?:(?<!\d)(?<!\d\s)-)?"
NUMBER = rf"{SIGN}(?:{NUMERAL})"
# An x that begins a word is no multiplication sign
TOKEN = re.compile(
    rf"(?P<number>{NUMBER})|(?P<operator>[-+*/=]|x(?![a-z]))|(?P<bracket>[()])|(?P<other>\n|\S)"
)
BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
# Notes for a calculator in GSM8K's solutions: 2 + 3 = <<2+3=5>>5
CALCULATOR = re.compile(r"<<[^<>\n]*>>")
# Operations that undo each other
OPPOSITES = {"+": "-", "-": "+", "*": "/", "/": "*"}
# The dash of a list item is no minus: "- 8 + 3 = 11" is a true equation
BULLET = re.compile(r"^[ \t]*[-*] ", re.M)


def equations(text):
    """List the equations in `text`, in linear time.

    Returns:
        A list of equations. Each is a list of sides, and each side a list of tokens.
    """
    found_equations = []
    for run in _runs(_unmarked(text)):
        # A word may cut a run off after an operator: "so 3 + 4 = ?", "7 - that is"
        while run and not _ends_a_value(run[-1]):
            run.pop()
        sides: list[list[str]] = [[]]
        for token in run:
            sides.append([]) if token == "=" else sides[-1].append(token)
        # The brackets in "(so 2 + 3 = 5)" are no part of the equation
        num_open, num_close = (sides[0].count(x) for x in "()")
        sides[0] = sides[0][max(0, num_open - num_close) :] if sides[0][:1] == ["("] else sides[0]
        num_open, num_close = (sides[-1].count(x) for x in "()")
        sides[-1] = sides[-1][: len(sides[-1]) - max(0, num_close - num_open)]
        # A left side without an operation (7 = 7) shows no working. A run that starts with an
        # operator continues an expression that this parser did not read
        lhs = sides[0]
        if len(sides) > 1 and len(lhs) > 1 and (lhs[0][-1].isdigit() or lhs[0] == "("):
            found_equations.append(sides)
    return found_equations


def _unmarked(text):
    """Return `text` without its layout: boxes, bold, dollar signs, bullets.

    Operators become characters.
    """
    text = BOXED.sub(r"\1", BULLET.sub("", CALCULATOR.sub("", text.translate(FULL_WIDTH))))
    text = LAYOUT.sub("", BOLD.sub(r"\2", without_fractions(text)))
    # Powers stay in the expression: if ^ cut it, 10^2 + 3 would be read as 2 + 3, which is 5
    return with_operators(text).replace("^", "**")


def _runs(text):
    """List the longest runs of numbers, operators and brackets, each a list of tokens."""
    runs: list[list[str]] = []
    run: list[str] = []
    # The added newline ends the last run
    for match in TOKEN.finditer(text + "\n"):
        token, kind = match.group(), match.lastgroup
        follows_value = bool(run) and _ends_a_value(run[-1])
        # Two values next to each other are no expression. A ")" that no value precedes ends one
        begins_run = follows_value and (kind == "number" or token == "(")
        is_unfit = token == ")" and not follows_value
        if kind == "other" or begins_run or is_unfit:
            runs.append(run)
            run = []
        if kind != "other" and not is_unfit:
            run.append("*" if token == "x" else token)
    return runs


def _ends_a_value(token):
    return token[-1].isdigit() or token == ")"


def adds_nothing(side, known):
    """Return True if this side of an equation adds nothing to the working.

    This is so if it is one number, or has a + 0, a * 1 or a + b - b. But it does add something if
    `known` has the 0, the 1 or two of b.

    Args:
        side: The tokens of the side, which has a value.
        known: A Counter of numbers.
    """
    while "(" in side:
        end = side.index(")")
        start = max(i for i in range(end) if side[i] == "(")
        group = side[start + 1 : end]
        if (start, end) == (0, len(side) - 1):
            side = group
            continue
        if len(group) > 1 and adds_nothing(group, known):
            return True
        side = [*side[:start], str(number("".join(group))), *side[end + 1 :]]
    operation, terms = "", []
    for token in side:
        if token in OPPOSITES:
            operation = token
        else:
            terms.append((operation, number(token)))
    if len(terms) < 2:
        return True
    # The first number counts as added, or as multiplied if the next operation is * or /
    next_operation = terms[1][0]
    terms[0] = ("*" if next_operation in ("*", "/") else "+", terms[0][1])
    # A first 1 that is divided adds something: 1 / 4 is not 4
    factors = [x for operation, x in terms[next_operation == "/" :] if operation in "*/"]
    has_neutral = (0 in [x for _, x in terms] and not known[0]) or (1 in factors and not known[1])
    return has_neutral or any((OPPOSITES[o], x) in terms and known[x] < 2 for o, x in terms)


def repeats(tokens, operands):
    """Return how often an equation counts.

    3 + 3 = 6 counts twice if the question has 3 four times, and otherwise once.
    """
    used_numbers = Counter(number(token) for token in tokens if token[-1].isdigit())
    return max(
        1, min((operands[x] // n for x, n in used_numbers.items() if x in operands), default=1)
    )
