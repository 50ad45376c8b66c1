"""The records Rule, one reward by rule, and Reading, how a rule reads a completion's answer.

Tests: tests/rewards/test_rules.py.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple


class Reading(NamedTuple):
    """How a rule reads the answer in a completion, so that answers can vote.

    Attributes:
        find: find(completion, question) -> str, or None if there is no answer.
        key: key(answer, question) -> a value. Answers with equal values count as the same answer.
    """

    find: Callable[[str, str | None], str | None]
    key: Callable[[str, str | None], Hashable]


class Rule(NamedTuple):
    """One reward by rule.

    Attributes:
        score: score(completion: str, example: Mapping) -> float from 0 to 1. None if there is a
            verifier.
        check: check(example) raises ValueError for an example that the rule cannot score. None if
            the rule can score every example.
        reading: How to read the answer. None where answers cannot vote, such as programs.
        verifier: A class that is used in place of `score` and scores a batch in a pool of workers.
            Its method score(values, completions, *more) gets the examples' values of the first of
            `fields`, then the completions, then the examples' values of each other field.
        fields: Names of the fields of an example that the verifier gets.
        unread: unread(completion, example) -> True if the completion states something that the rule
            cannot read and therefore scores 0. None if the rule does not say.
    """

    score: Callable[[str, Mapping], float] | None = None
    check: Callable[[Mapping], object] | None = None
    reading: Reading | None = None
    verifier: Callable | None = None
    fields: tuple[str, ...] = ("answer",)
    unread: Callable[[str, Mapping], bool] | None = None
