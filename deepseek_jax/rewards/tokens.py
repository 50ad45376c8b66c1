"""Split a line of text into tokens: numbers, words, LaTeX commands and signs.

Tests: tests/rewards/test_quantity.py, tests/rewards/test_answer.py.
"""

import re
from typing import NamedTuple

from deepseek_jax.rewards.number import NUMERAL
from deepseek_jax.rewards.words import WORD

TOKEN = re.compile(
    rf"(?P<space>\s+)|(?P<number>\([0-9]+/[0-9]+\)|(?:{NUMERAL})(?:/\d+)?)"
    rf"|(?P<word>{WORD}(?:\^\{{?[0-9]\}}?)?)|(?P<command>\\[A-Za-z]+)|(?P<sign>\*\*|.)"
)
OPENING = frozenset(["(", "[", "{", '"', "“", "*", "**"])
CLOSING = frozenset([")", "]", "}", '"', "”", "’", "*", "**"])


class Token(NamedTuple):
    """A piece of a line.

    Attributes:
        kind: "number", "word", "command" or "sign".
        text: The piece as it is written.
        glued: True if another token precedes it without a space.
    """

    kind: str
    text: str
    glued: bool

    @property
    def negates(self):
        """True if the token can be the sign of a number, as a symbol or a word such as "minus"."""
        return self.text in ("-", "–", "+") or self.text.lower() in ("minus", "negative")


class Context(NamedTuple):
    """How to read a number.

    Attributes:
        known: The words of the question (words.words_of).
        running: True if the number stands in running text, False if it stands in a statement that
            has nothing else.
    """

    known: frozenset
    running: bool


def tokens_of(line: str) -> list[Token]:
    """Split a line into a list of Token."""
    tokens, glued = [], False
    for match in TOKEN.finditer(line):
        kind = match.lastgroup
        # TOKEN consists of named groups
        assert kind is not None
        if kind != "space":
            tokens.append(Token(kind, match.group(), glued))
        glued = kind != "space"
    return tokens


def places_of_numbers(tokens: list):
    """Return the indices of the number tokens."""
    return [place for place, token in enumerate(tokens) if token.kind == "number"]
