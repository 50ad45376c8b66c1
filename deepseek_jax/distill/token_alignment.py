"""Which of a teacher's tokens say the same as which of a student's, for two tokenizers. No jax."""

from typing import NamedTuple

import numpy as np


class Alignment(NamedTuple):
    """teacher_index: int32[n], the teacher's token that each of the student's is compared with, -1 for none.
    exact: bool[n], True where both are the same text after the same text.
    """

    teacher_index: np.ndarray
    exact: np.ndarray


def align_tokens(student_offsets, teacher_offsets):
    """Alignment of two tokenizations of one text.

    student_offsets, teacher_offsets: (begin, end) of every token of the whole text, as tokenizers give them;
    rows are cut to length afterwards. A token is taken to say what lies between the end of the one before it
    and its own end, so that it does not matter whether white space counts; several with one end (bytes of
    one character) are not told apart, and tokens before the text (0, 0) are left out. An end token is
    aligned where both sides give it the span (n, n + 1) behind a text of n. The text is cut wherever both
    sides have a boundary: a piece with one token on either side is exact; in another the tokens are compared
    in order, as far as both go.
    """
    student, teacher = _boundaries(student_offsets), _boundaries(teacher_offsets)
    teacher_index = np.full(len(student_offsets), -1, np.int32)
    exact = np.zeros(len(student_offsets), bool)
    common = sorted(student.keys() & teacher.keys())
    for begin, end in zip(common, common[1:], strict=False):
        mine = range(student[begin], student[end])
        theirs = range(teacher[begin], teacher[end])
        for i, j in zip(mine, theirs, strict=False):
            teacher_index[i] = j
            exact[i] = len(mine) == len(theirs) == 1
    return Alignment(teacher_index, exact)


def _boundaries(offsets):
    """A dict from each place where a token ends to the number of tokens up to there; 0 is one such place."""
    ends = np.maximum.accumulate([0, *(end for _, end in offsets)])
    return {int(end): index for index, end in enumerate(ends)}  # of equal ends the last


def shared_vocabulary(student, teacher, same_tokens=()):
    """The ids of tokens spelled alike: (student_ids int32[n], teacher_ids int32[n]), by student's id.

    student, teacher: dicts from a token's spelling to its id, both in one alphabet (byte-level BPE's of
    DeepSeek, Qwen and Llama 3 are). same_tokens: further (student spelling, teacher spelling) pairs, such as
    the end tokens; they go before equal spelling. Raises ValueError where no token is shared or one of
    same_tokens is missing.
    """
    for mine, theirs in same_tokens:
        if mine not in student or theirs not in teacher:
            raise ValueError(
                f"same_tokens={(mine, theirs)!r} must be a token of the student and one of the teacher"
            )
    pairs = {student[mine]: teacher[theirs] for mine, theirs in same_tokens}
    taken = set(pairs.values())
    for token, i in student.items():
        j = teacher.get(token)
        if j is not None and i not in pairs and j not in taken:
            pairs[i] = j
    if not pairs:
        raise ValueError(
            f"no token of the student's {len(student)} is spelled like one of the teacher's {len(teacher)}; "
            "give both vocabularies in one alphabet, or set weights.matched to 0"
        )
    ids = np.array(sorted(pairs.items()), np.int32)
    return ids[:, 0], ids[:, 1]
