"""Is a completion laid out as asked: the R1-Zero template's tags (arXiv:2501.12948, table 1); and what of it
is for the reader.
"""

from deepseek_jax.rewards.answer import final_text
from deepseek_jax.rewards.language import TAGS as ANY_TAG

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def think_answer_format(completion, example):
    """1.0 if `completion` is <think> ... </think> <answer> ... </answer>, else 0.0.

    Each tag exactly once and in this order, something inside both pairs, and nothing but white
    space outside of them. `example` is not read: every reward takes one.
    """
    if any(completion.count(tag) != 1 for tag in TAGS):
        return 0.0
    pieces, rest = [], completion
    for tag in TAGS:
        piece, found, rest = rest.partition(tag)
        if not found:
            return 0.0  # it stands before the tag that it has to follow
        pieces.append(piece.strip())
    before, thought, between, answer = pieces
    return float(bool(thought and answer) and not (before or between or rest.strip()))


def summary(completion):
    """What is for the reader: the text after the last </think>, without tags and white space around."""
    return ANY_TAG.sub("", final_text(completion)).strip()
