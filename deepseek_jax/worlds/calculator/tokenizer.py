"""The tokenizer of the world of long sums."""

from deepseek_jax.data.tokenizer import closed_tokenizer
from deepseek_jax.worlds.calculator.corpus import OTHER, PIECES


def calculator_tokenizer():
    """Make the tokenizer, in which a digit, a symbol or a call's word is one token.

    It has 19 ids, <pad> and <eos> the last. A question is 11 tokens with its line break, a call 11.
    Each stretch of text that is not made of corpus.PIECES is the one token OTHER: a model has to
    read a tool's answer, errors too.
    """
    return closed_tokenizer(PIECES, other=OTHER)
