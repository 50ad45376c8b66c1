"""The graded rule of the classic example "What is 2 + 3?", as parts that add up.

`6` scores 0, `5` scores 1 (`correct`), and `2 + 3 = 5` scores 2: `correct` and `correct_reasoning`,
or in free text `correct_working`. Working earns nothing unless it is right itself: every step
true, on the numbers of the question, ending in the answer.
example: "question" and "answer" (str), and optionally "operands" (list of int) where the question
does not write its numbers in digits.
"""

import re
from collections import Counter
from collections.abc import Mapping

from deepseek_jax.rewards.answer import final_text, gold_answer, number

# A longer number is not read as an answer
MAX_DIGITS = 30
# A minus after a digit subtracts
SIGN = r"(?:(?<!\d)(?<!\d\s)-)?"
NUMBER = rf"{SIGN}(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?"
NUMBERS = re.compile(NUMBER)
STEP = re.compile(r"(-?[0-9]{1,30})\s*([-+*])\s*(-?[0-9]{1,30})\s*=\s*(-?[0-9]{1,30})")
FINAL_ANSWER = re.compile(
    r"(?:^|[\s;,.])(?:(?:so,? )?the (?:final )?answer is|(?:final )?answer:|a:)\s*(-?\d+)$", re.I
)
# An x that begins a word is no multiplication sign
TOKEN = re.compile(rf"(?P<number>\$?{NUMBER})|(?P<operator>[-+*/×÷=]|x(?![a-z]))|(?P<other>\n|\S)")
EXPRESSION = re.compile(rf"{NUMBER}(?:\s*[-+*/]\s*{NUMBER})+")
# The dash of a list item is no minus: "- 8 + 3 = 11" is a true equation
BULLET = re.compile(r"^[ \t]*[-*] ", re.M)


def correct(completion: str, example: Mapping):
    """1.0 if the last number in `completion` is example["answer"], an integer; else 0.0.

    The number is read as every rule reads an answer, see answer.final_text: one in a thought, closed or not,
    is none. Raises ValueError if the answer is not an integer.
    """
    return float(_last_integer(final_text(completion)) == _answer(example))


def check_integer(example: Mapping):
    """Raise ValueError unless example["answer"] is an integer."""
    _answer(example)


def correct_reasoning(completion: str, example: Mapping):
    """1.0 if `completion` is right and consists of a chain of right steps alone; else 0.0.

    The chain: `a + b = c` with + - or *, separated by `;`, `,` or a newline; each step true; every
    number of the question and every intermediate result used exactly once, as one of the two
    operands of a step; the last result is the answer. `Answer: 16`, `A: 16` or `So the answer is
    16.` may follow. The steps may use only the operators in the question, if there are any (`2 * 2 =
    4` is no reason for 2 + 2); where it has -, they may use + too.
    Raises ValueError as check_chain does.
    """
    operands = _chain_operands(example)
    if not correct(completion, example):
        return 0.0
    text = FINAL_ANSWER.sub("", completion.strip().rstrip(".")).rstrip(" .")
    steps = [STEP.fullmatch(s.strip()) for s in re.split(r"[;,\n]", text) if s.strip()]
    if not steps or None in steps:
        return 0.0
    # Every number may be used once: the question's, and each step's result in a later step
    available = Counter(operands)
    for step in steps:
        a, b, c = int(step[1]), int(step[3]), int(step[4])
        true = c == {"+": a + b, "-": a - b, "*": a * b}[step[2]]
        available.subtract([a, b])
        if not true or min(available[a], available[b]) < 0:
            return 0.0
        available[c] += 1
    # + drops the numbers whose count is 0
    used_up = +available == Counter([_answer(example)])
    return float(used_up and _operators_allowed({s[2] for s in steps}, example))


def check_chain(example: Mapping):
    """Raise ValueError unless the question has two or more integers and the answer is an integer."""
    _chain_operands(example)
    _answer(example)


def correct_working(completion: str, example: Mapping):
    """1.0 if `completion` is right and states its working as equations in free text; else 0.0.

    An equation: numbers and + - * / (also x × ÷) on the left of one or more `=`. There is at least
    one; every one is true; one ends in the answer; and their left sides together have the
    question's numbers, each as often as the question. Operators as in `correct_reasoning`.
    """
    if not correct(completion, example):
        return 0.0
    true = _true_equations(completion)
    if not true:
        return 0.0
    left, results = true
    used = Counter(number(token) for token in left if token[-1].isdigit())
    # Not ==: an intermediate result stands on the left of the next equation, as 11 in 11 + 5 = 16
    complete = used >= Counter(_operands(example)) and _answer(example) in results
    return float(complete and _operators_allowed(set(left) & set("+-*/"), example))


def true_equations(completion: str, example: Mapping):
    """1.0 if `completion` states equations, every one true, on a number of the question; else 0.0.

    It does not check that the answer is right: a part of the reward where right answers are rare.
    """
    true = _true_equations(completion)
    if not true:
        return 0.0
    used = {number(token) for token in true[0] if token[-1].isdigit()}
    return float(not used.isdisjoint(_operands(example)))


def _true_equations(text):
    """(tokens of the equations' left sides, their results); None if one is false or there are none."""
    equations = _equations(text)
    values = [[number("".join(side)) for side in sides] for sides in equations]
    if not equations or any(None in sides or len(set(sides)) > 1 for sides in values):
        return None
    left = [token for sides in equations for side in sides[:-1] for token in side]
    return left, [sides[-1] for sides in values]


def _equations(text):
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
    equations = []
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
            equations.append(sides)
    return equations


def _answer(example):
    gold = gold_answer(example)
    value = number(gold)
    if value is None or value.denominator != 1:
        raise ValueError(
            f"the answer {gold!r} of {example.get('question')!r} is not an integer; use "
            "the reward exact_answer or math_verify."
        )
    return int(value)


def _chain_operands(example):
    operands = _operands(example)
    if len(operands) < 2 or any(x != int(x) for x in operands):
        raise ValueError(
            f"correct_reasoning needs two or more integers in {example['question']!r}; give "
            "example['operands'], or use the reward correct_working."
        )
    return operands


def _last_integer(text):
    last = None
    for last in NUMBERS.finditer(text):  # noqa: B007
        pass
    if last is None or sum(map(str.isdigit, last.group())) > MAX_DIGITS:
        return None
    return number(last.group())


def _operands(example):
    given = example.get("operands")
    return given if given is not None else [number(x) for x in NUMBERS.findall(example["question"])]


def _operators_allowed(operators, example):
    """Are these operators in the question's expression? True if the question is not one expression."""
    question = example["question"]
    shown = EXPRESSION.search(question)
    if not shown or len(NUMBERS.findall(shown[0])) < len(NUMBERS.findall(question)):
        return True
    allowed = set(re.findall(r"\d\s*([-+*/])", shown[0]))
    # 9 - 3 - 2 may be worked as 3 + 2 = 5; 9 - 5 = 4
    return operators <= allowed | ({"+"} if "-" in allowed else set())
