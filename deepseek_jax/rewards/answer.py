"""Is the final answer right: extract it from the text, then compare numbers as fractions.

A model's text is never evaluated as Python: `number` walks a syntax tree of digits and
+ - * / ** alone, within caps on length, depth and size. Digits are those of ASCII in every rule: 0 to 9.
The patterns match any script's, as text, so that no rule reads a 5 in the "٣5" of two scripts.
"""

import ast
import operator
import re
from collections.abc import Mapping
from fractions import Fraction

# The longest and deepest expression that is read as a number; others are compared as text
MAX_CHARS = 100
MAX_DEPTH = 20
# The largest numerator or denominator, in intermediate results too
MAX_BITS = 256

BINARY = {ast.Add: operator.add, ast.Sub: operator.sub}
BINARY |= {ast.Mult: operator.mul, ast.Div: operator.truediv}
NUMERAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A minus after a digit, a period or a closing bracket subtracts; elsewhere it is a sign
LAST_NUMBER = re.compile(rf"(?:(?<![\d.)])(?<![\d.)]\s)-)?(?:{NUMERAL})(?:/\d+)?")
# A unit in letters follows a space: "72 clips" is 72, "12 cm^2" is 12, and "5x" and "5 x" are no numbers
UNIT = r"(?![xyz]\b)[a-z][a-z ]*(?:\^\{?[0-9]\}?)?"
WITH_UNIT = re.compile(rf"([-+]?(?:{NUMERAL}))\s*(?:[%°]|\s{UNIT})?")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
# LaTeX that changes how an answer looks and not what it is: words in a font, spaces, "1{,}000"
WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
SPACES = re.compile(r"\\[,:; ]|~")
CHOICE = re.compile(r"\(\s*([a-z])\s*\)")


def extract_answer(text: str):
    """The final answer that `text` states (str), or None if it states none.

    A marked answer, see `marked_answer`; else the last number. Text before a last `</think>` is
    working, and no answer is read from it.
    """
    marked = marked_answer(text)
    if marked is not None:
        return marked
    numbers = LAST_NUMBER.findall(final_text(text))
    return numbers[-1] if numbers else None


def final_text(text: str):
    """The text after the last `</think>` (all of it without one), up to a `<think>` that nothing closes.

    THE rule of every reward that reads an answer: an answer within the thinking earns nothing.
    """
    return text.rpartition("</think>")[2].partition("<think>")[0]


def marked_answer(text: str):
    r"""The answer that `text` marks as such (str), or None.

    In this order: the last complete \boxed{...}, the last <answer>...</answer>, and the rest of the
    line after the last "####" (GSM8K, arXiv:2110.14168). Linear in the length of the text.
    """
    text = final_text(text)
    end = text.rfind("</answer>")
    # Without "</answer>" the search is in an empty text: an end of -1 would mean the last character
    start = text.rfind("<answer>", 0, max(end, 0))
    candidates = [
        _last_boxed(text),
        text[start + len("<answer>") : end] if start >= 0 else None,
        text.rpartition("####")[2].lstrip().partition("\n")[0] if "####" in text else None,
    ]
    return next((c.strip() for c in candidates if c and c.strip()), None)


def exact_answer(completion: str, example: Mapping):
    """1.0 if the final answer of `completion` equals that of example["answer"], else 0.0.

    Numbers are equal as fractions, other answers as text; see `same_answer`. An expression counts
    as its value: an answer of `2 + 3` is right where 5 is.
    """
    answer = extract_answer(completion)
    return float(answer is not None and same_answer(answer, gold_answer(example)))


def gold_answer(example: Mapping):
    """example["answer"] (str), without the working that may precede a mark.

    Raises ValueError where it is absent or empty: every completion would be wrong.
    """
    gold = str(example.get("answer", ""))
    gold = marked_answer(gold) or gold.strip()
    if not _plain(gold):
        raise ValueError(f"{example.get('question')!r} has an empty answer; correct the data.")
    return gold


def same_answer(answer: str, gold: str):
    r"""Are two answers equal: as numbers if both are numbers, else as text, without regard to case, spaces,
    dollar signs, a final period, LaTeX's \text{...} and parentheses around a choice such as (A)?
    """
    key = answer_key(answer)
    # An empty answer equals nothing, not even another empty one
    return key == answer_key(gold) != ""


def answer_key(answer: str):
    """A Fraction or a str that equal answers share, see `same_answer`; to compare and to count."""
    plain = _plain(answer)
    value = number(plain)
    return plain if value is None else value


def number(text: str):
    r"""Read `text` exactly, as a Fraction: "1,234", "$5", "0.5", "1/2", "2 * (3 + 4)", "72 clips", and in
    LaTeX "1{,}234" and "12 \text{ cm}".

    Returns None if it is not a number, or exceeds a cap of this module.
    """
    if len(text) > MAX_CHARS:
        return None
    text = _plain(text)
    unit = WITH_UNIT.fullmatch(text)
    # A numeral with leading zeros is a syntax error in Python
    text = LEADING_ZEROS.sub("", THOUSANDS.sub("", unit[1] if unit else text))
    if not re.fullmatch(r"[0-9+\-*/(). ]+", text):
        return None
    try:
        return _walk(ast.parse(text.strip(), mode="eval").body, text.strip(), MAX_DEPTH)
    # Not an expression, or past a cap
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


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


def _plain(text):
    text = re.sub(r"\\?[$£€]", "", text.replace("\\%", "%").replace("{,}", ",").replace("\\!", ""))
    text = " ".join(SPACES.sub(" ", WORDS.sub(r" \1 ", text)).lower().split()).rstrip(".").strip()
    choice = CHOICE.fullmatch(text)
    return choice[1] if choice else text


def _last_boxed(text):
    """The content of the last \\boxed{...} whose braces close, in one pass, or None."""
    open_braces, last = [], None
    for match in BRACES.finditer(text):
        token = match.group()
        # Escaped braces match too, so that they are passed over: they neither open nor close
        if token.startswith("\\boxed"):
            open_braces.append(match.end())
        elif token == "{":
            open_braces.append(None)
        elif token == "}" and open_braces:
            start = open_braces.pop()
            last = (start, match.start()) if start is not None else last
    return text[slice(*last)] if last else None
