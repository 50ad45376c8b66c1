"""A line of text as tokens: numbers, words, commands of LaTeX and signs."""

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
    """A piece of a line. kind: "number", "word", "command" or "sign". glued: no space is before it."""

    kind: str
    text: str
    glued: bool

    @property
    def negates(self):
        """Whether it is the sign of a number, in words too."""
        return self.text in ("-", "–", "+") or self.text.lower() in ("minus", "negative")


class Context(NamedTuple):
    """How a number is read. known: the words of the question (words.words_of). running: it stands in running
    text, not in a statement that has nothing else.
    """

    known: frozenset
    running: bool


def tokens_of(line: str):
    """The tokens of a line, a list of Token."""
    tokens, glued = [], False
    for match in TOKEN.finditer(line):
        if match.lastgroup != "space":
            tokens.append(Token(match.lastgroup, match.group(), glued))
        glued = match.lastgroup != "space"
    return tokens


def places_of_numbers(tokens: list):
    """The indices of the numbers among tokens."""
    return [place for place, token in enumerate(tokens) if token.kind == "number"]
