"""What many answers to one question agree on: cons@k (arXiv:2501.12948, section 3 of version 1)."""

from collections import Counter


def majority(answers):
    """The answer given most often; of several such the one given first (the paper names no rule), None if
    there is none. answers: a sequence of hashable values, None for a completion without an answer, which
    has no vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None  # of equals, the first one inserted
