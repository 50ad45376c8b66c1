"""Read what precedes a number: its sign, and whether the number is a part of something else.

Tests: tests/rewards/test_quantity.py, tests/rewards/test_answer.py.
"""

import unicodedata

from deepseek_jax.rewards.tokens import CLOSING, OPENING, Context
from deepseek_jax.rewards.words import (
    CARDINALS,
    FIRST_OF_CHINESE,
    FUNCTION,
    HAN_BEFORE,
    LINKS,
    VERBS,
    changes,
    denies,
    singular,
)

# Signs after which a number begins something new
BEGINS = frozenset('=≈∴:.,;!?|"“”‘’—―•…>→⇒►。，、；：！？')
COMMANDS = frozenset(r"\implies \Rightarrow \rightarrow \to \therefore \approx \because".split())
# After one of these words and "of", a number stands by itself: in "a total of 5", not in "the
# square of 5". Words of the question count like these
WHOLE_OF = frozenset(
    """total sum amount number average mean profit cost price value result answer balance difference remainder
    distance length height weight area volume speed rate time sale change product score""".split()
)
# How many words before a number are searched: for a "not", and for a number that is joined to it
NEAR, JOINED = 4, 5


def read_sign(tokens: list, place: int, context: Context):
    """Return the sign of the number at tokens[place], 1 or -1, or None.

    None means that the number is a part of something else.
    """
    sign, (glued, k) = 1, _opened(tokens, tokens[place].glued, place - 1)
    if k >= 0 and tokens[k].negates:
        if _subtracts(tokens, k, glued):
            return None
        sign = 1 if tokens[k].text == "+" else -1
        glued, k = _opened(tokens, tokens[k].glued, k - 1)
    if k < 0 or _begins(tokens, k, glued):
        return sign
    # x5 and half-5 are no numbers, 得5 is one
    if tokens[k].kind != "word" or (glued and tokens[k].text[-1] < FIRST_OF_CHINESE):
        return None
    if HAN_BEFORE.search(tokens[k].text):
        return None
    return sign if _leads(_clause(tokens[: k + 1]), context) else None


def _opened(tokens, glued, k):
    """Go back over opening brackets, quotes and stars from tokens[k].

    Returns:
        (True if no space follows the token before them, the place of that token).
    """
    while k >= 0 and tokens[k].text in OPENING and not _multiplies(tokens, k):
        glued, k = tokens[k].glued, k - 1
    return glued, k


def _multiplies(tokens, k):
    """Return True if the sign at tokens[k] belongs to a product, a function or a command.

    The sign is an opening bracket, a quote or a star.
    """
    if k == 0:
        return False
    before, token = tokens[k - 1], tokens[k]
    if token.text in ("*", "**"):
        return token.text == "*" or before.kind == "number" or before.text in CLOSING
    return token.glued and before.text not in OPENING and before.text not in BEGINS


def _subtracts(tokens, k, glued):
    """Return True if the minus at tokens[k] subtracts or is a dash: "a - 5", "covid-5"."""
    if k == 0:
        return False
    before, token = tokens[k - 1], tokens[k]
    if before.kind == "number" or before.text in (")", "]", "}", "%"):
        return True
    return before.kind == "word" and token.kind != "word" and (token.glued or not glued)


def _begins(tokens, k, glued):
    """Return True if a number after the sign or command at tokens[k] begins something new."""
    text, behind_number = tokens[k].text, k > 0 and tokens[k - 1].kind == "number"
    if tokens[k].kind == "command":
        return text in COMMANDS
    if text == ",":
        # False in 1,5, (x, 5) and "x, 5", but not in "So, 5"
        opened = sum((t.text in ("(", "[", "{")) - (t.text in (")", "]", "}")) for t in tokens[:k])
        variable = k > 0 and tokens[k - 1].kind == "word" and len(tokens[k - 1].text) == 1
        return not opened and not (glued and behind_number) and not variable
    if text == ":" and behind_number:
        # False in 1:5 and 1 : 5, but not in "on day 1: 5"
        return not glued and tokens[k].glued
    if text == "=" and k > 0 and tokens[k].glued and tokens[k - 1].text in ("!", "<", ">"):
        return False
    if text == ">":
        return k > 0 and tokens[k - 1].text in ("-", "=")
    if text in (")", "]", "}"):
        return not glued and not behind_number
    return text in BEGINS or unicodedata.category(text[0]) == "So"


def _clause(tokens):
    """List the words of the clause that ends with these tokens, the last word first.

    A number or a % becomes "#".
    """
    words = []
    for token in reversed(tokens):
        if token.text in BEGINS or token.kind == "command":
            break
        if token.kind in ("number", "word") or token.text == "%":
            words.append(token.text.lower() if token.kind == "word" else "#")
    return words


def _leads(words, context):
    """Return True if these words before a number, the nearest first, leave it whole."""
    first, *rest = words
    negated = [denies(word) for word in words[:NEAR]]
    finite = [word in VERBS and word not in ("be", "been") for word in words[:NEAR]]
    # Rejects "is not 5", but not "who do not play is 5"
    if True in negated and True not in finite[: negated.index(True)]:
        return False
    if first == "of":
        whole = not rest or singular(rest[0]) in WHOLE_OF | context.known
        return whole and not (rest and changes(rest[0]))
    if first in LINKS:
        return not _links(rest)
    if changes(first) or (len(first) == 1 and first.isascii() and first not in "ai"):
        return False
    # Rejects "10 mod 5", but not "3 days make 5"
    if rest[:1] == ["#"]:
        verb = first in VERBS or (first.endswith("s") and not first.endswith("ss"))
        return verb or (singular(first) in context.known and first not in FUNCTION)
    return True


def _links(before):
    """Return True if an "and", "or", "to" or "by" after these words joins two numbers.

    Args:
        before: The words before the link, the nearest first.
    """
    if before[:1] in (["divided"], ["multiplied"]):
        return True
    # As in "less than or equal to 5"
    if "than" in before[:JOINED]:
        return True
    # True in "is up to 5", but not in "adds up to 5"
    if before[:1] == ["up"] and (not before[1:] or before[1] in VERBS | FUNCTION):
        return True
    return any(word == "#" or word in CARDINALS for word in before[:JOINED])
