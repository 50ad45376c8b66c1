"""Rewards for arithmetic such as "What is 2 + 3?", graded in parts that add up.

`6` scores 0. `5` scores 1 (`correct`). `2 + 3 = 5` scores 2: `correct` and `correct_reasoning`, or
`correct_working` if the working is free text. Working earns nothing unless it is right: every step
must be true, use the numbers of the question, and lead to the answer.

Each example has "question" and "answer" (str). If the question does not write its numbers in
digits, the example also has "operands" (list of int).
"""

import re
from collections import Counter
from collections.abc import Mapping

from deepseek_jax.rewards.answer import (
    gold_answer,
    read_answer,
    same_answer,
)
from deepseek_jax.rewards.equations import NUMBER, adds_nothing, equations, repeats
from deepseek_jax.rewards.marks import closed_text
from deepseek_jax.rewards.number import number
from deepseek_jax.rewards.quantity import read_quantity

NUMBERS = re.compile(NUMBER)
STEP = re.compile(r"(-?[0-9]{1,30})\s*([-+*])\s*(-?[0-9]{1,30})\s*=\s*(-?[0-9]{1,30})")
FINAL_ANSWER = re.compile(
    r"(?:^|[\s;,.])(?:(?:so,? )?the (?:final )?answer is|(?:final )?answer:|a:)\s*(-?\d+)$", re.I
)
EXPRESSION = re.compile(rf"{NUMBER}(?:\s*[-+*/]\s*{NUMBER})+")


def correct(completion: str, example: Mapping):
    """Return 1.0 if the answer in `completion` is the integer example["answer"], else 0.0.

    The answer must be a number, with or without a unit (answer.read_answer). `2 + 3` only copies
    the question, so it is no answer.

    Raises:
        ValueError: If example["answer"] is not an integer.
    """
    check_integer(example)
    question = example.get("question")
    answer = read_answer(completion, question)
    if answer is None or answer.quantity is None or answer.quantity.computed:
        return 0.0
    return float(same_answer(answer.text, gold_answer(example), question))


def check_integer(example: Mapping):
    """Raise ValueError unless example["answer"] is an integer."""
    _answer(example)


def correct_reasoning(completion: str, example: Mapping):
    """Return 1.0 if `completion` is right and has only a chain of right steps, else 0.0.

    The chain consists of steps `a + b = c`, with + - or *. `;`, `,` or a newline separates them.
    Every step is true. Every number of the question and every intermediate result is used exactly
    once, as one of the two operands of a step. The last result is the answer. `Answer: 16`, `A: 16`
    or `So the answer is 16.` may follow.

    If the question has operators, the steps may use only these: `2 * 2 = 4` is no reason for 2 + 2.
    If the question has -, the steps may also use +.

    Raises:
        ValueError: As check_chain does.
    """
    operands = _chain_operands(example)
    if not correct(completion, example):
        return 0.0
    text = FINAL_ANSWER.sub("", completion.strip().rstrip(".")).rstrip(" .")
    pieces = [s.strip() for s in re.split(r"[;,\n]", text) if s.strip()]
    steps = [step for step in map(STEP.fullmatch, pieces) if step]
    if not steps or len(steps) < len(pieces):
        return 0.0
    # Every number may be used once: the question's, and each step's result in a later step
    available = Counter(operands)
    for step in steps:
        a, b, c = int(step[1]), int(step[3]), int(step[4])
        is_true = c == {"+": a + b, "-": a - b, "*": a * b}[step[2]]
        available.subtract([a, b])
        if not is_true or min(available[a], available[b]) < 0:
            return 0.0
        available[c] += 1
    # The unary + drops numbers with a count of 0
    all_used = +available == Counter([_answer(example)])
    return float(all_used and _operators_allowed({s[2] for s in steps}, example))


def check_chain(example: Mapping):
    """Raise ValueError unless the question has two or more integers and the answer is one."""
    _chain_operands(example)
    _answer(example)


def correct_working(completion: str, example: Mapping):
    """Return 1.0 if `completion` is right and shows its working in equations, else 0.0.

    The equations may stand in free text. An equation has numbers, brackets and + - * / (also x × ÷)
    on the left of one or more `=`. There is at least one equation, every equation is true, and one
    of them ends in the answer. Together, their left sides have each number of the question at least
    as often as the question. The operators are limited as in `correct_reasoning`.

    An equation does not count if it is in an open thought, adds nothing (`5 + 0 = 5`) or repeats
    another one.

    Raises:
        ValueError: As check_integer does.
    """
    if not correct(completion, example):
        return 0.0
    left_tokens, results = _working(completion, example)
    used_numbers = Counter(number(token) for token in left_tokens if token[-1].isdigit())
    # Not ==: an intermediate result stands on the left of the next equation, as 11 in 11 + 5 = 16
    is_complete = used_numbers >= Counter(_operands(example)) and _answer(example) in results
    return float(is_complete and _operators_allowed(set(left_tokens) & set("+-*/"), example))


def true_equations(completion: str, example: Mapping):
    """Return 1.0 if `completion` states only true equations, on a number of the question, else 0.0.

    It does not check that the answer is right. It serves as a part of the reward where right
    answers are rare. Equations that do not count for correct_working do not count here.
    """
    left_tokens, _ = _working(completion, example)
    used_numbers = {number(token) for token in left_tokens if token[-1].isdigit()}
    return float(not used_numbers.isdisjoint(_operands(example)))


def _working(completion, example):
    """Collect the equations in `completion` that show working.

    Returns:
        (tokens of all left sides, results). ([], []) if an equation is false.
    """
    stated_equations = equations(closed_text(completion))
    values = [[number("".join(side)) for side in sides] for sides in stated_equations]
    if any(None in sides or len(set(sides)) > 1 for sides in values):
        return [], []
    operands = Counter(_operands(example))
    seen_terms: Counter[tuple] = Counter()
    known_numbers, left_tokens, results = operands.copy(), [], []
    for sides, (*_, result) in zip(stated_equations, values, strict=True):
        tokens = [x for side in sides[:-1] if not adds_nothing(side, known_numbers) for x in side]
        # 3 + 2 = 5 repeats 2 + 3 = 5
        terms = (result, *sorted(str(number(x)) if x[-1].isdigit() else x for x in tokens))
        seen_terms[terms] += 1
        is_overused = any(_overuses(side, known_numbers, operands) for side in sides[:-1])
        if tokens and not is_overused and seen_terms[terms] <= repeats(tokens, operands):
            left_tokens += tokens
            results.append(result)
            known_numbers[result] += 1
    return left_tokens, results


def _overuses(side, known_numbers, operands):
    """Return True if a side uses a number of the question too often: 1 + 1, for a single 1."""
    numbers = Counter(number(token) for token in side if token[-1].isdigit())
    return any(n > known_numbers[x] for x, n in numbers.items() if x in operands)


def _answer(example):
    gold = gold_answer(example)
    quantity = read_quantity(gold, example.get("question"), lead=False)
    if quantity is None or quantity.value.denominator != 1:
        raise ValueError(
            f"the answer {gold!r} of {example.get('question')!r} is not an integer; use "
            "the reward exact_answer or math_verify."
        )
    return int(quantity.value)


def _chain_operands(example):
    operands = _operands(example)
    if len(operands) < 2 or any(x != int(x) for x in operands):
        raise ValueError(
            f"correct_reasoning needs two or more integers in {example['question']!r}; give "
            "example['operands'], or use the reward correct_working."
        )
    return operands


def _operands(example):
    operands = example.get("operands")
    return (
        operands
        if operands is not None
        else [number(x) for x in NUMBERS.findall(example["question"])]
    )


def _operators_allowed(operators, example):
    """Return True if the question has these operators, or is not one expression."""
    question = example["question"]
    expression = EXPRESSION.search(question)
    if not expression or len(NUMBERS.findall(expression[0])) < len(NUMBERS.findall(question)):
        return True
    allowed_operators = set(re.findall(r"\d\s*([-+*/])", expression[0]))
    # 9 - 3 - 2 may be worked as 3 + 2 = 5; 9 - 5 = 4
    return operators <= allowed_operators | ({"+"} if "-" in allowed_operators else set())
