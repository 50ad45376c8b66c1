r"""Numbers as people write them, read exactly: "1,234", "$5", "72 clips", "\frac{1}{2}".

A model's text is never evaluated as Python: `number` walks a syntax tree of digits and
+ - * / ** alone, within caps on length, depth and size. Digits are those of ASCII in every rule: 0 to 9.
The patterns match any script's, as text, so that no rule reads a 5 in the "٣5" of two scripts.
"""

import ast
import functools
import operator
import re
import unicodedata
from fractions import Fraction

# The longest and deepest expression that is read as a number; others are compared as text
MAX_CHARS = 100
MAX_DEPTH = 20
# The largest numerator or denominator, in intermediate results too
MAX_BITS = 256

BINARY = {ast.Add: operator.add, ast.Sub: operator.sub}
BINARY |= {ast.Mult: operator.mul, ast.Div: operator.truediv}
NUMERAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A unit in letters follows a space: "72 clips" is 72, "12 cm^2" is 12, and "5x" and "5 x" are no numbers
UNIT = r"(?P<unit>[a-z][a-z /]*)(?:\^\{?[0-9]\}?)?"
WITH_UNIT = re.compile(rf"([-+]?(?:{NUMERAL}|\([0-9]+/[0-9]+\)))\s*(?:%|\s{UNIT})?")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
# Not after a digit: 2\frac{1}{2} is a mixed number, no product
FRACTION = re.compile(
    r"(?<![\d.)])(?<![\d.)] )\\[dt]?frac\s?(?:\{\s?(-?[0-9]+)\s?\}\{\s?([0-9]+)\s?\}|([0-9])([0-9]))"
)
# LaTeX that changes how an answer looks and not what it is: words in a font, spaces, "1{,}000"
WORDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname)"
    r"\s*\{([^{}]*)\}"
)
SPACES = re.compile(r"\\[,:; ]|~")
# Thin spaces between thousands, and what shows a formula: $5$, \(5\), \[5\], \left( 5 \right)
LAYOUT = re.compile(
    r"(?<=\d)\\,(?=\d{3}(?!\d))|\\?[$£€]|\\[()\[\]]|\\(?:left|right)\b\.?|\\displaystyle\b|\\!"
)
BOLD = re.compile(r"(?<![\w)*])\*\*([^*]+)\*\*(?![\w(*])")
DEGREES = re.compile(r"(?:\^\s?\{?\s?\\circ\s?\}?|°)\s?[CF]?(?=\s*$)")
PERCENT = re.compile(r"\bper ?cent(?:age)?(?: points?)?\b", re.I)
# A metre is a small m
MILLION = re.compile(r"(?<=\d)\s?M\b")
SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹]+")

# Words that scale a number or compute with it: "5 million", "5 plus two"
SCALES = frozenset(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred thousand million billion trillion quadrillion lakh crore dozen score grand mil
    hundreds thousands millions billions trillions quadrillions lakhs crores dozens scores
    half halves third thirds fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth
    ninths tenth tenths hundredth hundredths thousandth thousandths millionth millionths billionth billionths
    minus plus negative squared cubed factorial double triple twice thrice doubled tripled halved divided
    multiplied pi infinity mln mio mrd bln tens gross pct permille permil basis mod modulo root""".split()
)
# No unit either: "5 or more"
CHANGES = SCALES | frozenset(
    "or not nor but except than least most maybe between wrong incorrect false".split()
)
# Other words of one or two letters are variables and products: 5 x, 5 xy
SHORT_UNITS = frozenset(
    "c f g h j l m s v w cm mm km kg mg lb oz ft in yd ml hr am pm mi kw mb gb tb hz kb ms".split()
)
LINKS = frozenset("a an of at on to by per".split())


def number(text: str):
    r"""Read `text` exactly, as a Fraction: "1,234", "$5", "0.5", "1/2", "2 * (3 + 4)", "72 clips", and in
    LaTeX "1{,}234", "\frac{1}{2}" and "12 \text{ cm}".

    Returns None if it is not a number, or exceeds a cap of this module.
    """
    return None if len(text) > MAX_CHARS else _read(text)


# A long completion repeats its numbers
@functools.lru_cache(4096)
def _read(text):
    text = FRACTION.sub(_quotient, plain(text))
    measured = WITH_UNIT.fullmatch(text)
    if measured and measured["unit"] and not is_unit(measured["unit"]):
        return None
    # A numeral with leading zeros is a syntax error in Python
    text = LEADING_ZEROS.sub("", THOUSANDS.sub("", measured[1] if measured else text))
    if not re.fullmatch(r"[0-9+\-*/(). ]+", text):
        return None
    try:
        return _walk(ast.parse(text.strip(), mode="eval").body, text.strip(), MAX_DEPTH)
    # Not an expression, or past a cap
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def is_numeral(text: str):
    """Is `text` one number as it stands, with or without a unit: "5", "-1,234.5", "72 clips", not "2+3"?"""
    return number(text) is not None and bool(WITH_UNIT.fullmatch(plain(text).strip("() ")))


def is_unit(words: str):
    """Are these words, in small letters, the unit of a number? Not if one changes it, as "million" does."""
    first, *rest = words.replace("/", " ").split()
    return _names_a_thing(first) and all(x in LINKS or _names_a_thing(x) for x in rest)


def _names_a_thing(word):
    return word in SHORT_UNITS or word == "of" or (len(word) > 2 and word not in CHANGES)


def plain(text: str):
    """`tidy` in small letters."""
    return tidy(text).lower()


def tidy(text: str):
    r"""`text` on one line, without what changes how an answer looks and not what it is: dollar signs, a final
    period, Markdown's **bold**, LaTeX's \text{...}. "5²" becomes "5^2", a typeset minus "-", "percent" "%".
    """
    text = LAYOUT.sub("", text.replace("\\%", "%").replace("{,}", ",").replace("−", "-"))
    text = SUPERSCRIPT.sub(lambda m: "^" + unicodedata.normalize("NFKC", m[0]), text)
    text = PERCENT.sub("%", SPACES.sub(" ", WORDS.sub(r" \1 ", text)))
    text = MILLION.sub(" million", BOLD.sub(r"\1", text))
    return DEGREES.sub("", " ".join(text.split()).rstrip(".")).strip()


def _quotient(match):
    top, bottom = match[1] or match[3], match[2] or match[4]
    return f"({top}/{bottom})"


def _walk(node, text, depth):
    """The value of a syntax tree; ValueError for anything but capped arithmetic."""
    if depth == 0:
        raise ValueError("too deep")
    if isinstance(node, ast.Constant):
        # From the digits as written: the tree holds 0.1 as a float, which is not exactly 0.1
        value = Fraction(ast.get_source_segment(text, node).rstrip("."))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        value = _walk(node.operand, text, depth - 1)
        value = -value if isinstance(node.op, ast.USub) else value
    elif isinstance(node, ast.BinOp):
        left, right = (_walk(x, text, depth - 1) for x in (node.left, node.right))
        if isinstance(node.op, ast.Pow):
            value = _power(left, right)
        elif type(node.op) in BINARY:
            value = BINARY[type(node.op)](left, right)
        else:
            raise ValueError("no arithmetic")
    else:
        raise ValueError("no arithmetic")
    # Checked afterwards: + - * / at most about double the bits of capped numbers; _power checks before
    if _bits(value) > MAX_BITS:
        raise ValueError("too big")
    return value


def _power(base, exponent):
    """base ** exponent, checked before it is computed: 9**9**9 would fill the memory."""
    if exponent.denominator != 1 or abs(exponent) * _bits(base) > MAX_BITS:
        raise ValueError("too big")
    return base**exponent.numerator


def _bits(value):
    return max(value.numerator.bit_length(), value.denominator.bit_length())
