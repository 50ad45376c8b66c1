"""The tokenizer of the world of long sums."""

from deepseek_jax.data.tokenizer import closed_tokenizer
from deepseek_jax.worlds.calculator.corpus import OTHER, PIECES


def calculator_tokenizer():
    """A digit, a symbol or the word of a call is one token: 19 ids, <pad> and <eos> the last.

    A question is 11 tokens with its line break, a call 11. Each stretch of text that is not made of
    corpus.PIECES is the one token OTHER: a model has to read what a tool answers, errors too.
    """
    return closed_tokenizer(PIECES, other=OTHER)
