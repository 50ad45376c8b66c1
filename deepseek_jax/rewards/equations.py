"""Equations in free text: find them, and tell those that show working from those that add nothing."""

import re
from collections import Counter

from deepseek_jax.rewards.number import number

# A minus after a digit subtracts
SIGN = r"(?:(?<!\d)(?<!\d\s)-)?"
NUMBER = rf"{SIGN}(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?"
# An x that begins a word is no multiplication sign
TOKEN = re.compile(rf"(?P<number>\$?{NUMBER})|(?P<operator>[-+*/×÷=]|x(?![a-z]))|(?P<other>\n|\S)")
# Operations that undo each other
OPPOSITES = {"+": "-", "-": "+", "*": "/", "/": "*"}
# The dash of a list item is no minus: "- 8 + 3 = 11" is a true equation
BULLET = re.compile(r"^[ \t]*[-*] ", re.M)


def equations(text):
    """The equations in `text`: each a list of its sides, each side a list of tokens. Linear in time."""
    runs, run = [], []
    # The newline ends the last run
    for match in TOKEN.finditer(BULLET.sub("", text) + "\n"):
        token, kind = match.group(), match.lastgroup
        # Other text ends a run, and so does a number right after a number
        if kind == "other" or (kind == "number" and run and run[-1][-1].isdigit()):
            runs.append(run)
            run = []
        if kind == "number":
            run.append(token.removeprefix("$"))
        elif kind == "operator":
            run.append({"×": "*", "x": "*", "÷": "/"}.get(token, token))
    found = []
    for run in runs:
        # Words cut a run off after an operator: "so 3 + 4 = ?", "7 - that is"
        while run and not run[-1][-1].isdigit():
            run.pop()
        sides = [[]]
        for token in run:
            sides.append([]) if token == "=" else sides[-1].append(token)
        # A left side without an operation (7 = 7) shows no working. A run that starts with an operator
        # continues an expression that this parser did not read
        if len(sides) > 1 and len(sides[0]) > 1 and sides[0][0][-1].isdigit():
            found.append(sides)
    return found


def adds_nothing(side, known):
    """Is this side of an equation one number, or has it a + 0, a * 1 or an a + b - b, without the 0, the 1
    or two of b in `known`, a Counter of numbers?
    """
    operation, terms = "", []
    for token in side:
        if token in OPPOSITES:
            operation = token
        else:
            terms.append((operation, number(token)))
    if len(terms) < 2:
        return True
    # The first number stands as if added, or multiplied where the next operation is * or /
    following = terms[1][0]
    terms[0] = ("*" if following in ("*", "/") else "+", terms[0][1])
    # A first 1 may be divided: 1 / 4 is no 4
    factors = [x for operation, x in terms[following == "/" :] if operation in "*/"]
    neutral = (0 in [x for _, x in terms] and not known[0]) or (1 in factors and not known[1])
    return neutral or any((OPPOSITES[o], x) in terms and known[x] < 2 for o, x in terms)


def repeats(tokens, operands):
    """How often an equation counts: 3 + 3 = 6 twice where the question has four times 3, and else once."""
    used = Counter(number(token) for token in tokens if token[-1].isdigit())
    return max(1, min((operands[x] // n for x, n in used.items() if x in operands), default=1))
