"""One reward by rule, and how it reads the answer in a completion."""

from collections.abc import Callable
from typing import NamedTuple


class Reading(NamedTuple):
    """How a rule reads the answer in a completion, so that answers can vote.

    find(completion, question) -> str, or None without an answer. Answers with equal key(answer, question) are
    the same.
    """

    find: Callable
    key: Callable


class Rule(NamedTuple):
    """One reward by rule.

    score(completion: str, example: Mapping) -> float, a share from 0 to 1. check(example) raises ValueError
    for an example that the rule cannot score. reading: None where answers cannot vote, such as programs.
    verifier: in place of score, a class that scores a batch in a pool of workers, with score(values,
    completions, *more): the examples' values of the first of `fields`, and, after the completions, those of
    the others. unread(completion, example): True if it states something
    that the rule cannot read, and scores 0 for it.
    """

    score: Callable | None = None
    check: Callable | None = None
    reading: Reading | None = None
    verifier: Callable | None = None
    fields: tuple[str, ...] = ("answer",)
    unread: Callable | None = None
