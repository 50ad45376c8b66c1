"""The most frequent answer of several samples, for cons@k (arXiv:2501.12948, section 3 of version 1)."""

from collections import Counter


def majority(answers):
    """The most frequent answer; of several the one that came first (the paper gives no rule); else None.

    answers: a sequence of hashable values. None is a completion without an answer, which has no vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    # Among equals max gives the first inserted
    return max(votes, key=votes.get, default=None)
