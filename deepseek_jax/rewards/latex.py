r"""Select the part of a marked answer that math-verify may read.

math-verify drops what it does not know. So it reads a 5 in "5²", "5 \text{ million}", "[5, 5]" and
"4 = 6 = 5".

Tests: tests/rewards/test_math_verify.py.
"""

import re

from deepseek_jax.rewards.answer import in_percent
from deepseek_jax.rewards.number import THOUSANDS, number, tidy
from deepseek_jax.rewards.quantity import EQUALS, sides_agree
from deepseek_jax.rewards.unit import is_unit
from deepseek_jax.rewards.words import changes

# Characters of the longest answer that is read; no formula that answers a question is longer
MAX_CHARS = 2000
# Commands that math-verify does not drop. Another command is allowed if the gold answer has it
COMMANDS = frozenset(
    r"""frac dfrac tfrac cfrac sqrt cdot times div pi infty binom sin cos tan cot sec csc arcsin arccos arctan
    sinh cosh tanh log ln lg exp max min gcd lvert rvert vert lfloor rfloor lceil rceil alpha beta gamma delta
    epsilon theta lambda mu sigma phi varphi omega cup cap mathbb in le leq ge geq lt gt pm mp emptyset
    varnothing setminus begin end { } |""".split()
)
COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.S)
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+")
SYMBOLS = {"π": r"\pi ", "×": r"\times ", "·": r"\cdot ", "÷": "/", "∞": r"\infty ", "≈": "="}
CHARACTERS = frozenset("+-*/^_(){}[].,;<>=|!&:' \\")
# Several values, a relation or a set. If the gold answer is one value, the answer must be one too
SEVERAL = re.compile(
    r"[,;<>&:]|\\(?:le|leq|ge|geq|lt|gt|pm|mp|cup|cap|mathbb|in|begin|emptyset|varnothing|setminus)\b"
)
# A number with an index, a prime or a bar; two numbers next to each other; "**" or ".."; a bracket
# at the start; an operator at the end
BROKEN = re.compile(
    r"[\d)}]\s?[_'|]|[\d)}.]\s+\.?\d|\.\.|\*\*|^\s*\[|(?:[-+*/^_=<>:(\[{]|\\times|\\cdot|\\div)\s*$"
)
MATRIX = re.compile(r"\\(begin|end)\{(?:bmatrix|array)\}(?:\{[lcr|]+\})?")
ELEMENT = re.compile(r"^\s*[A-Za-z]\s*\\in\b\s*")
CELLS = re.compile(r"\s*(\\\\|&|\\(?:begin|end)\{pmatrix\})\s*")
ROOT = re.compile(r"√\s*\(?(\d+|[a-z])\)?")
# The base of a numeral, as in 101_2
BASE = re.compile(r"\d_\{?(\d+)")
FORMULA_AMONG_WORDS = re.compile(r"([^$\d\\=]*)(?:\$([^$]+)\$|\\\(([^$]+?)\\\))([^$\d\\=]*)")
MEASURED = re.compile(
    r"(.*?\S)(?:\s+|(?<=[\d)}])(?=(?-i:[a-z]{2})\b))([a-z][a-z /]*)(?:\^\{?[0-9]\}?)?", re.I
)
# A Chinese measure word, such as 个. Characters of numbers and arithmetic are excluded: they change
# the value
MEASURED_IN_HAN = re.compile(
    r"(.*?[\d)}])\s?(?:千[克米]|(?:(?![〇零一二两三四五六七八九十百千万亿兆半打倍成分负加减乘除或不])[一-鿿]){1,4})"
)


def canonical(formula: str):
    r"""Return `formula` in one of its spellings: \pmatrix for a matrix, [1, 2] for x \in [1, 2]."""
    formula = MATRIX.sub(r"\\\1{pmatrix}", ROOT.sub(r"\\sqrt{\1}", formula))
    return ELEMENT.sub("", CELLS.sub(r"\1", formula) if "{pmatrix}" in formula else formula)


def readable(answer: str, gold: str, question: str | None = None):
    """Return the formula in `answer` (str) that may be compared with `gold`, or None.

    None means that the answer states nothing equal to `gold`: it has a word that changes a number,
    a command or a character that is not read, several values where the gold answer is one, or a %
    that neither the gold answer nor the question has.
    """
    if len(answer) > MAX_CHARS:
        return None
    among = FORMULA_AMONG_WORDS.fullmatch(answer)
    if among and any(map(changes, f"{among[1]} {among[4]}".lower().split())):
        return None
    answer = (among[2] or among[3]) if among else answer
    answer = canonical(answer)
    text, gold = (THOUSANDS.sub("", _without_unit(tidy(canonical(x)))) for x in (answer, gold))
    if set(BASE.findall(gold)) - set(BASE.findall(text)):
        return None
    for symbol, command in SYMBOLS.items():
        text = text.replace(symbol, command)
    if in_percent(gold, question) and "%" not in gold:
        text = text.replace("%", "")
    one_value = "=" not in gold and not SEVERAL.search(gold)
    if one_value:
        text = _value(text)
        if text is None or SEVERAL.search(text):
            return None
    if not _is_known(text, gold) or (BROKEN.search(text) and not BROKEN.search(gold)):
        return None
    return text if one_value else answer


def _without_unit(text):
    """Return `text` without the words after a value that are its unit.

    Letters that touch a number are its unit if they are short, as in 5cm. Otherwise they are a
    product of variables.
    """
    measured = MEASURED_IN_HAN.fullmatch(text)
    if measured:
        return measured[1]
    measured = MEASURED.fullmatch(text)
    return measured[1] if measured and is_unit(measured[2].lower()) else text


def _value(text):
    """Return the last side of "x = 5" or "2 + 3 = 5".

    Return None if another side is neither a name nor equal to the last side.
    """
    *sides, value = map(str.strip, EQUALS.split(text))
    return value if sides_agree(sides, number(value)) else None


def _is_known(text, gold):
    """Return True if math-verify reads all of `text`.

    Words and commands of the gold answer are known, and so are products of its variables.
    """
    letters = set("".join(LETTERS.findall(gold)))
    words = all(set(word) <= letters or word in ("or", "and") for word in WORD.findall(text))
    commands = set(COMMAND.findall(text)) <= COMMANDS | set(COMMAND.findall(gold))
    # Digits of other scripts pass: math-verify raises on them, and then there is no verdict
    allowed = CHARACTERS | set(gold)
    return words and commands and all(_is_plain(c) or c in allowed for c in text)


def _is_plain(character):
    return character.isdecimal() or (character.isascii() and character.isalpha())
