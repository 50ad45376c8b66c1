"""Runs of words that texts share: what near-duplicates and leaks from evaluation sets are told by.

A unit is a word of letters, a number or an arithmetic sign and, in Chinese, which puts no spaces between
words, a single character (rewards.language). Case, tags and other punctuation do not count.
"""

import re
import unicodedata

from deepseek_jax.rewards.language import HAN, TAGS

UNIT = re.compile(rf"[{HAN}]|\d+|[^\W\d_{HAN}]+|[-+*/=<>^%]")


def units(text):
    """The units of a text, a tuple of str."""
    return tuple(UNIT.findall(TAGS.sub(" ", unicodedata.normalize("NFKC", text)).lower()))


def ngrams(tokens, n):
    """The set of runs of n of the units; of a shorter text, the whole of it, unless it is empty."""
    if len(tokens) <= n:
        return {tokens} - {()}
    return {tokens[i : i + n] for i in range(len(tokens) - n + 1)}


class Evaluation:
    """The runs of n units of texts that a model will be measured on (n = 10: arXiv:2501.12948, D.1).

    questions: of one shorter than n, the whole counts as a run: else the shortest could not be kept apart.
    solutions: one shorter than n does not count: a final answer alone says nothing.
    """

    def __init__(self, questions, solutions, n):
        whole = [tokens for tokens in map(units, questions) if tokens]
        worked = [tokens for tokens in map(units, solutions) if len(tokens) >= n]
        self._runs = set().union(*(ngrams(tokens, n) for tokens in whole + worked))
        self._lengths = {len(run) for run in self._runs}

    def shares_a_run(self, text):
        """Whether any run of the evaluation's stands in the text."""
        tokens = units(text)
        return any(
            tokens[i : i + length] in self._runs
            for length in self._lengths
            for i in range(len(tokens) - length + 1)
        )
