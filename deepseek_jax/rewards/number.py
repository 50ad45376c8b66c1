r"""Read numbers and arithmetic exactly: "1,234", "0.5", "2 * (3 + 4)", "\frac{1}{2}".

A model's text is never evaluated as Python. `number` walks a syntax tree that may have only digits
and + - * / **, within caps on length, depth and size.

A number has only ASCII's digits, 0 to 9. The patterns also match the digits of other scripts, so
that "٣5" is one piece. This piece is no number, so no rule reads a 5 in it. quantity.py reads
words, units and signs that are written as words.

Tests: tests/rewards/test_answer.py.
"""

import ast
import functools
import operator
import re
import unicodedata
from fractions import Fraction

# Longest and deepest expression that is read as a number; others are compared as text
MAX_CHARS = 100
MAX_DEPTH = 20
# Most bits of a numerator or denominator, in intermediate results too
MAX_BITS = 256

BINARY = {ast.Add: operator.add, ast.Sub: operator.sub}
BINARY |= {ast.Mult: operator.mul, ast.Div: operator.truediv}
NUMERAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# How people and LaTeX write the operators
OPERATORS = {
    r"\times": "*",
    r"\cdot": "*",
    r"\div": "/",
    "×": "*",
    "·": "*",
    "⋅": "*",
    "∗": "*",
    "÷": "/",
}
OPERATORS |= {"−": "-", "–": "-"}
# Full-width signs in Chinese text; digits stay as they are
FULL_WIDTH = str.maketrans("（）＋－＝％：；，．！？［］／＊＄", "()+-=%:;,.!?[]/*$")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
# Not after a digit: 2\frac{1}{2} is a mixed number, not a product
FRACTION = re.compile(
    r"(?<![\d.)])(?<![\d.)] )\\[dt]?frac\s?(?:\{\s?(-?[0-9]+)\s?\}\{\s?([0-9]+)\s?\}|([0-9])([0-9]))"
)
# LaTeX that changes how an answer looks but not its value: words in a font, and spaces
WORDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname)"
    r"\s*\{([^{}]*)\}"
)
SPACES = re.compile(r"(?<!\\)\\[,:; ]|~|\\q?quad\b")
# Thin spaces between thousands, and layout around a number: $5$, US$5, \(5\), \[5\],
# \left( 5 \right)
LAYOUT = re.compile(
    r"(?<=\d)\\,(?=\d{3}(?!\d))|(?:(?<![A-Za-z])[A-Z]{1,2}(?=\\?\$\d))?\\?[$£€¥₹]|`|(?<!\\)\\[()\[\]]"
    r"|\\(?:left|right)\b\.?|\\displaystyle\b|\\!|</?(?:b|i|u|em|strong|span|p)>"
)
BOLD = re.compile(r"(?<![\w)*])(\*{1,3})(?=\S)([^*\n]+)(?<=\S)\1(?![\w(*])")
DEGREES = re.compile(r"(?<=\d)\s?(?:\^\s?\{?\s?\\circ\s?\}?|°|\\degree\b)\s?[CF]?(?![A-Za-z])")
PERCENT = re.compile(r"\b(?:per ?cent(?:age)?(?: points?)?|pct)\b", re.I)
SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹]+")


def number(text: str) -> Fraction | None:
    r"""Read a number or an expression as an exact Fraction, or return None.

    Examples are "1,234", "$5", "1/2", "2 * (3 + 4)" and "\frac12". None means that the text is
    neither a number nor an expression, or that it exceeds a cap of this module.
    """
    return None if len(text) > MAX_CHARS else _read(text)


# Cached because a long completion repeats its numbers
@functools.lru_cache(4096)
def _read(text):
    # A numeral with leading zeros is a syntax error in Python
    text = LEADING_ZEROS.sub("", THOUSANDS.sub("", without_fractions(tidy(text))))
    text = with_operators(text)
    if not re.fullmatch(r"[0-9+\-*/(). ]+", text):
        return None
    try:
        return _walk(ast.parse(text.strip(), mode="eval").body, text.strip(), MAX_DEPTH)
    # Not an expression, or beyond a cap
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def plain(text: str):
    """Return tidy(text) in lower case."""
    return tidy(text).lower()


def tidy(text: str):
    r"""Return `text` on one line, without marks that change how an answer looks but not its value.

    It drops dollar signs, a final period, Markdown's **bold** and LaTeX's \text{...}. It writes
    "5²" as "5^2", a typeset minus as "-" and "percent" as "%".
    """
    text = LAYOUT.sub(
        "", text.translate(FULL_WIDTH).replace("\\%", "%").replace("{,}", ",").replace("−", "-")
    )
    text = SUPERSCRIPT.sub(lambda m: "^" + unicodedata.normalize("NFKC", m[0]), text)
    text = PERCENT.sub("%", SPACES.sub(" ", WORDS.sub(r" \1 ", text)))
    text = DEGREES.sub("", BOLD.sub(r"\2", text))
    return " ".join(text.split()).replace(" ^", "^").rstrip(".,;").strip()


def with_operators(text: str):
    r"""Return `text` with + - * / in place of ×, \times and similar signs."""
    for sign, operator_ in OPERATORS.items():
        text = text.replace(sign, operator_)
    return text


def without_fractions(text: str):
    r"""Return `text` with (1/2) in place of \frac{1}{2}."""
    return FRACTION.sub(lambda m: f"({m[1] or m[3]}/{m[2] or m[4]})", text)


def _walk(node, text, depth):
    """Return a syntax tree's value. Raise ValueError for all but arithmetic within the caps."""
    if depth == 0:
        raise ValueError("too deep")
    if isinstance(node, ast.Constant):
        # Read the digits as written: the tree has 0.1 as a float, which is not exactly 0.1
        digits = ast.get_source_segment(text, node)
        # A tree that ast.parse makes has all places
        assert digits is not None
        value = Fraction(digits.rstrip("."))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        value = _walk(node.operand, text, depth - 1)
        value = -value if isinstance(node.op, ast.USub) else value
    elif isinstance(node, ast.BinOp):
        left_value, right_value = (_walk(x, text, depth - 1) for x in (node.left, node.right))
        if isinstance(node.op, ast.Pow):
            value = _power(left_value, right_value)
        elif type(node.op) in BINARY:
            value = BINARY[type(node.op)](left_value, right_value)
        else:
            raise ValueError("no arithmetic")
    else:
        raise ValueError("no arithmetic")
    # Checking afterwards is safe: + - * / at most about double the bits. _power checks before
    if _bits(value) > MAX_BITS:
        raise ValueError("too big")
    return value


def _power(base, exponent):
    """Return base ** exponent, after a check of its size: 9**9**9 would fill the memory."""
    if exponent.denominator != 1 or abs(exponent) * _bits(base) > MAX_BITS:
        raise ValueError("too big")
    return base**exponent.numerator


def _bits(value):
    return max(value.numerator.bit_length(), value.denominator.bit_length())
