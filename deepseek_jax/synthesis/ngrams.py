"""Runs of words (n-grams) of texts, to detect near-duplicates and leaks from evaluation sets.

A unit is a word of letters, a number or an arithmetic sign. In Chinese, which has no spaces between
words, it is a single character (rewards.language). Case, tags and other punctuation do not count.
"""

import re
import unicodedata
from collections.abc import Iterable

from deepseek_jax.rewards.language import HAN
from deepseek_jax.rewards.marks import TAGS

UNIT = re.compile(rf"[{HAN}]|\d+|[^\W\d_{HAN}]+|[-+*/=<>^%]")


def units(text: str) -> tuple[str, ...]:
    """Return the units of a text."""
    # NFKC writes full-width letters and digits as ordinary ones
    return tuple(UNIT.findall(TAGS.sub(" ", unicodedata.normalize("NFKC", text)).lower()))


def ngrams(tokens: tuple[str, ...], n: int):
    """Return the set of runs of n units.

    A shorter text is one run; an empty text gives an empty set.
    """
    if len(tokens) <= n:
        return {tokens} - {()}
    return {tokens[i : i + n] for i in range(len(tokens) - n + 1)}


class Evaluation:
    """Runs of n units in the texts of evaluation sets (n = 10: arXiv:2501.12948, D.1).

    Args:
        questions: Texts. A question shorter than n counts as one run, so that copies of it are
            detected too.
        solutions: Texts. A solution shorter than n does not count, because a final answer
            identifies no question.
        n: Units in a run.
    """

    def __init__(self, questions: Iterable[str], solutions: Iterable[str], n: int):
        whole = [tokens for tokens in map(units, questions) if tokens]
        worked = [tokens for tokens in map(units, solutions) if len(tokens) >= n]
        self._runs = set().union(*(ngrams(tokens, n) for tokens in whole + worked))
        # n, and the lengths of the questions that are shorter than n
        self._lengths = {len(run) for run in self._runs}

    def shares_a_run(self, text: str) -> bool:
        """Return whether the text contains a run of the evaluation sets."""
        tokens = units(text)
        return any(
            tokens[i : i + length] in self._runs
            for length in self._lengths
            for i in range(len(tokens) - length + 1)
        )
