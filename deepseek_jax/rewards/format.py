"""The reward for the tags of R1-Zero's template, and a completion's summary for the reader.

The template is in arXiv:2501.12948, table 1.
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
# Unicode's names of letters and symbols that show nothing: fillers of Hangul, the empty Braille
# cell, ...
BLANK = re.compile("FILLER|BLANK|NULL NOTEHEAD|OBJECT REPLACEMENT")


def think_answer_format(completion: str, example: Mapping):
    """Return 1.0 if `completion` is <think> ... </think> <answer> ... </answer>, else 0.0.

    Each tag must be there exactly once and in this order. Both pairs must have text that a reader
    sees, and only white space may be outside of them. `example` is not read: every reward takes
    one.
    """
    if any(completion.count(tag) != 1 for tag in TAGS):
        return 0.0
    pieces, remainder = [], completion
    for tag in TAGS:
        piece, found_tag, remainder = remainder.partition(tag)
        # The tag is in the text, but before a tag that it must follow
        if not found_tag:
            return 0.0
        pieces.append(piece.strip())
    before, thought, between, answer = pieces
    are_seen = shows(without_markup(thought)) and shows(without_markup(answer))
    return float(are_seen and not (before or between or remainder.strip()))


def shows(text: str) -> bool:
    """Return True if `text` shows a letter, a digit or a sign.

    Zero-width characters show nothing.
    """
    return any(map(_is_seen, text))


def _is_seen(character):
    category = unicodedata.category(character)
    # Other categories, such as Ll and Nd, have no blank characters
    if category not in ("Lo", "So"):
        return category[0] in "LNPS"
    return not BLANK.search(unicodedata.name(character, ""))


def without_markup(text: str) -> str:
    r"""Return `text` as a page shows it.

    HTML's tags and comments are removed. HTML's entities and \textbf{...} become text.
    """
    return COMMAND.sub(r"\1", MARKUP.sub("", html.unescape(text)))


def summary(completion: str) -> str:
    """Return the text for the reader: after the last </think>, no tags, no outer white space."""
    return ANY_TAG.sub("", final_text(completion)).strip()
