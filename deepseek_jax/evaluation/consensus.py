"""The most frequent answer of several samples, for cons@k (arXiv:2501.12948v1, section 3)."""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TypeVar

Answer = TypeVar("Answer", bound=Hashable)


def majority(answers: Iterable[Answer | None]) -> Answer | None:
    """Return the most frequent answer, the first of several such, or None if there is no vote.

    Where several are equally frequent, the one that came first counts: the paper gives no rule.

    Args:
        answers: None is a completion without an answer, which has no vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    # max returns the first of equals, and a Counter keeps the order of insertion
    return max(votes, key=votes.__getitem__, default=None)
