"""The reward for the R1-Zero template's format of tags (arXiv:2501.12948, table 1), and a completion's
summary, which is the text for the reader.
"""

import html
import re
import unicodedata
from collections.abc import Mapping

from deepseek_jax.rewards.marks import TAGS as ANY_TAG
from deepseek_jax.rewards.marks import final_text

MARKUP = re.compile(r"</?\s*[A-Za-z][^<>]*>|<!--.*?(?:-->|\Z)", re.S)
COMMAND = re.compile(r"\\[a-z]+\{([^{}]*)\}")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# Names of letters and symbols of Unicode that show nothing: fillers of Hangul, the empty Braille cell, ...
BLANK = re.compile("FILLER|BLANK|NULL NOTEHEAD|OBJECT REPLACEMENT")


def think_answer_format(completion: str, example: Mapping):
    """1.0 if `completion` is <think> ... </think> <answer> ... </answer>, else 0.0.

    Each tag exactly once and in this order, text that a reader sees inside both pairs, and only white space
    outside them. `example` is not read: every reward takes one.
    """
    if any(completion.count(tag) != 1 for tag in TAGS):
        return 0.0
    pieces, rest = [], completion
    for tag in TAGS:
        piece, found, rest = rest.partition(tag)
        # A tag that is absent here stands before one that it must follow
        if not found:
            return 0.0
        pieces.append(piece.strip())
    before, thought, between, answer = pieces
    seen = shows(without_markup(thought)) and shows(without_markup(answer))
    return float(seen and not (before or between or rest.strip()))


def shows(text: str):
    """Does `text` show a letter, a digit or a sign? Zero-width characters show nothing."""
    return any(map(_is_seen, text))


def _is_seen(character):
    category = unicodedata.category(character)
    # Others, such as Ll and Nd, have no blanks
    if category not in ("Lo", "So"):
        return category[0] in "LNPS"
    return not BLANK.search(unicodedata.name(character, ""))


def without_markup(text: str):
    r"""`text` as a page shows it: without HTML's tags and comments, its entities and \textbf{...} as text."""
    return COMMAND.sub(r"\1", MARKUP.sub("", html.unescape(text)))


def summary(completion: str):
    """The text for the reader: after the last </think>, without tags and surrounding white space."""
    return ANY_TAG.sub("", final_text(completion)).strip()
