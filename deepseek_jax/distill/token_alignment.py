"""Alignment of a teacher's tokens with a student's where their tokenizers differ. No jax."""

from typing import NamedTuple

import numpy as np


class Alignment(NamedTuple):
    """The teacher's token for each of the student's.

    Attributes:
        teacher_index: int32[n], the teacher's aligned token, -1 if there is none.
        exact: bool[n], True if both tokens are the same text after the same text.
    """

    teacher_index: np.ndarray
    exact: np.ndarray


def align_tokens(student_offsets, teacher_offsets):
    """Align the tokens of two tokenizers on one text.

    The text is cut wherever both sides have a boundary. A piece with one token on each side is
    exact; in other pieces the tokens are aligned in order, until one side has no more. A token's
    text runs from the end of the token before it to its own end, so it does not matter which token
    the white space belongs to. Tokens with the same end (bytes of one character) count as one, and
    tokens before the text, (0, 0), are skipped. End tokens align if both have the span (n, n + 1)
    after a text of n.

    Args:
        student_offsets: (begin, end) of every token of the whole text, from the tokenizer.
        teacher_offsets: The same for the teacher.
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
    """Map each place where a token ends, and 0, to the number of tokens up to there."""
    # A token without text has the span (0, 0): the maximum makes it end where the token before it
    # does
    ends = np.maximum.accumulate([0, *(end for _, end in offsets)])
    # The last of several equal ends wins: those tokens belong to one piece
    return {int(end): index for index, end in enumerate(ends)}


def shared_vocabulary(
    student: dict[str, int], teacher: dict[str, int], end: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Pair the ids of tokens that are spelled alike in both vocabularies.

    Args:
        student: From a token's spelling to its id; both dicts in one alphabet, such as the
            byte-level BPE of DeepSeek, Qwen and Llama 3.
        teacher: The same for the teacher.
        end: The student's and the teacher's end token, which are a pair however they are spelled.

    Returns:
        (student_ids int32[n], teacher_ids int32[n]), sorted by the student's id.
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
