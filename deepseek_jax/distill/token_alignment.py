"""Aligns a teacher's tokens with a student's where the two have different tokenizers. No jax."""

from typing import NamedTuple

import numpy as np


class Alignment(NamedTuple):
    """teacher_index: int32[n], the teacher's token aligned with each of the student's, -1 for none. exact:
    bool[n], True where both tokens are the same text after the same text.
    """

    teacher_index: np.ndarray
    exact: np.ndarray


def align_tokens(student_offsets, teacher_offsets):
    """Alignment of two tokenizations of one text.

    student_offsets, teacher_offsets: (begin, end) of every token of the whole text, from the tokenizers. A
    token's text runs from the end of the token before it to its own end, so it does not matter which token
    the white space belongs to. Tokens with one end (bytes of one character) count as one, and tokens before
    the text (0, 0) are skipped. End tokens align if both have the span (n, n + 1) after a text of n. The text
    is cut wherever both sides have a boundary. A piece with one token on each side is exact; in other pieces
    the tokens are aligned in order, until one side has no more.
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
    """A dict from each place where a token ends, and 0, to the number of tokens up to there."""
    # The maximum, because a token without text has the span (0, 0): it ends where the one before it does
    ends = np.maximum.accumulate([0, *(end for _, end in offsets)])
    # The last of several equal ends wins: those tokens belong to one piece
    return {int(end): index for index, end in enumerate(ends)}


def shared_vocabulary(student: dict[str, int], teacher: dict[str, int], end: tuple[str, str]):
    """The ids of tokens with equal spelling: (student_ids int32[n], teacher_ids int32[n]), by student's id.

    student, teacher: dicts from a token's spelling to its id, both in one alphabet, such as the byte-level
    BPE of DeepSeek, Qwen and Llama 3. end: the student's and the teacher's end token, a pair whatever their
    spelling.
    """
    mine, theirs = end
    pairs = {student[mine]: teacher[theirs]}
    taken = set(pairs.values())
    for token, i in student.items():
        j = teacher.get(token)
        if j is not None and i not in pairs and j not in taken:
            pairs[i] = j
    ids = np.array(sorted(pairs.items()), np.int32)
    return ids[:, 0], ids[:, 1]
