"""Read what follows a number: its unit, words that scale it and words that change it.

Tests: tests/rewards/test_quantity.py, tests/rewards/test_answer.py.
"""

import re
import unicodedata
from typing import NamedTuple

from deepseek_jax.rewards.tokens import CLOSING, Context, Token, tokens_of
from deepseek_jax.rewards.words import (
    ABBREVIATIONS,
    ADJECTIVES,
    CARDINALS,
    FIRST_OF_CHINESE,
    FUNCTION,
    HAN_CHANGES,
    HAN_SCALES,
    HAN_UNITS,
    IRREGULAR,
    JOINS,
    LETTER_SCALES,
    LETTER_UNITS,
    LINKS,
    SCALES,
    VERBS,
    changes,
    denies,
    singular,
)

# Signs that end a statement about a number, and signs that continue it
ENDS = frozenset(".,;:!?|―—…–-。，、；：！？")
OPERATORS = frozenset("+*/^×÷·=<>≤≥≠±√_")
ADDS = frozenset("or nor plus minus mod".split())
# The most adjectives before a noun. In running text, only the NEAR words after a number can join
# another number to it
MOST_ADJECTIVES, NEAR = 3, 3


class Unit(NamedTuple):
    """The unit of a number and the word that scales it: 5 [thousand] [apples].

    Attributes:
        text: The unit, "" without one.
        scale: The factor of the scale word, 1 without one.
        scale_word: The word that scales the number, "" without one.
    """

    text: str = ""
    scale: int = 1
    scale_word: str = ""


def read_unit(tokens: list[Token], context: Context, *, one: bool = False) -> Unit | None:
    """Return the Unit of the number before these tokens, or None.

    None means that the tokens change the number, or are not understood.

    Args:
        tokens: The tokens after a number.
        context: How to read the number.
        one: True if the number is above 0 and at most 1. Its unit need not be a plural, as in "1
            foot".
    """
    if tokens and tokens[0].text == "%":
        return Unit("%") if context.running or _ends(tokens[1:], context, False) else None
    while tokens and tokens[0].text in CLOSING:
        tokens = tokens[1:]
    if not tokens:
        return Unit()
    first = tokens[0]
    if first.text == "/" and tokens[1:] and tokens[1].kind == "word":
        per = tokens[1].text.lower()
        return Unit(f"/{per}") if len(per) > 2 or per in ABBREVIATIONS else None
    if first.kind == "word" and first.text[0] >= FIRST_OF_CHINESE:
        return _chinese_unit(tokens, context)
    scale, word, tokens = _scale(tokens)
    if not word and first.kind == "word" and first.glued and not _is_glued_unit(first, context):
        return None
    text = _words(tokens, context, one)
    return None if text is None else Unit(text, scale, word)


def is_unit(words: str):
    """Return True if these words are a unit of the number before them.

    "million" is no unit, because it changes the number.
    """
    return bool(_words(tokens_of(words), Context(frozenset(), running=False), one=False))


def _scale(tokens):
    """Return (scale, its last word, the tokens after it).

    Several words may scale, as both do in "5 hundred thousand".
    """
    first = tokens[0]
    letter = first.kind == "word" and (first.glued or len(first.text) == 1)
    if letter and first.text in LETTER_SCALES:
        return LETTER_SCALES[first.text], first.text, tokens[1:]
    scale, word = 1, ""
    while tokens and tokens[0].kind == "word" and singular(tokens[0].text.lower()) in SCALES:
        word, tokens = singular(tokens[0].text.lower()), tokens[1:]
        scale *= SCALES[word]
    return scale, word, tokens


def _is_glued_unit(token, context):
    """Return True if letters that touch a number are its unit: 5cm, but not 5x.

    One letter is a unit only if the question has its name: 5m where the question has meters.
    """
    head = re.split(r"[/^]", token.text.lower())[0]
    if len(head) == 1:
        names = {head, *LETTER_UNITS.get(head, "").split()}
        return head in ABBREVIATIONS and not names.isdisjoint(context.known)
    return len(head) > 2 or head in ABBREVIATIONS


def _chinese_unit(tokens, context):
    text, scale, word = tokens[0].text, 1, ""
    while text and text[0] in HAN_SCALES and not text.startswith(HAN_UNITS):
        scale, word, text = scale * HAN_SCALES[text[0]], word + text[0], text[1:]
    changed = text[:1] in HAN_CHANGES and not text.startswith(HAN_UNITS)
    if (text and changed) or re.search("[或不加减乘除半又]", text):
        return None
    return Unit(text, scale, word) if _ends(tokens[1:], context, True) else None


def _words(tokens, context, one):
    """Return the words that are the unit of the number before them, or None for other words.

    Without words, return "".
    """
    words = []
    for token in tokens:
        if token.kind != "word":
            break
        words.append(token.text.lower())
    rest = tokens[len(words) :]
    if not _ends(rest, context, bool(words)):
        return None
    if not words:
        return ""
    # "5 times 3"
    if rest and rest[0].kind == "number" and words[-1] in JOINS | LINKS:
        return None
    if not _is_noun_phrase(words, context, one) or not _leaves_whole(words, context.running):
        return None
    return " ".join(words)


def _is_noun_phrase(words, context, one):
    """Return True if words begin with adjectives and a noun, or continue a sentence.

    A word of FUNCTION continues a sentence, and in running text so does one of VERBS.
    """
    # Accepts "5 a day", but not the variables in "5 a" and "5 i"
    if len(words[0]) > 1 or words[1:] or context.running:
        if words[0] in FUNCTION - {"i"} or (context.running and words[0] in VERBS):
            return True
    for word, following in zip(words[: MOST_ADJECTIVES + 1], [*words[1:], "of"], strict=False):
        if word not in CARDINALS and (singular(word) in context.known or _names_a_thing(word)):
            return True
        if word in FUNCTION | VERBS or len(word) < 3:
            return False
        # Accepts "5 third graders", but not "5 third of it"
        if changes(word) and not (ADJECTIVES.fullmatch(word) and following != "of"):
            return False
        if one:
            return not word.endswith("ed")
    return False


def _adds(word):
    return changes(word) or word in ADDS


def _names_a_thing(word):
    """Return True if a word is a unit by itself: a plural, an abbreviation, km/h, cm^2."""
    head = re.split(r"[/^]", word)[0]
    if head in ABBREVIATIONS or head in IRREGULAR or head == "times":
        return True
    plural = len(head) > 3 and head.endswith("s") and not head.endswith(("ss", "us"))
    return plural and not changes(head)


def _leaves_whole(words, running):
    """Return True if the words after a number neither join another number to it nor deny it.

    "5 or six" and "5 is wrong" return False.
    """
    if running and (words[0] in VERBS or denies(words[0])) and any(map(denies, words[: NEAR + 1])):
        return False
    if not running and any(w in VERBS or w in CARDINALS or denies(w) for w in words):
        return False
    near = words[:NEAR] if running else words
    for place, (word, following) in enumerate(zip(near, [*words[1:], ""], strict=False)):
        if word in ADDS and (place == 0 or not running):
            return False
        joins = word in ADDS or word in ("and", "to", "than", "by", "times", "point", "a")
        if joins and (following in CARDINALS or ADJECTIVES.fullmatch(following)):
            return False
    return True


def _ends(tokens, context, worded):
    """Return True if the tokens after a number and its unit add nothing to the number.

    Args:
        tokens: The tokens after the unit.
        context: How to read the number.
        worded: True if the unit has words.
    """
    if context.running and tokens and tokens[0].text == "=":
        # "so 5 = x"
        return len(tokens) == 2 and tokens[1].kind == "word"
    noted = False
    for token, following in zip(tokens, [*tokens[1:], None], strict=False):
        chinese = following is not None and following.text[0] >= FIRST_OF_CHINESE
        if token.text == "(" and (chinese or not token.glued):
            noted = True
        elif noted and token.kind == "word" and not _adds(token.text.lower()):
            continue
        elif token.text in CLOSING:
            noted = False
        elif not context.running:
            return False
        elif token.text in ENDS and not (token.text == "-" and token.glued):
            return True
        elif worded:
            return token.text not in OPERATORS
        else:
            return unicodedata.category(token.text[0]) == "So"
    return True
