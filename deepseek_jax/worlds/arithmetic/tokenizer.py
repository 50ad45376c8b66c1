"""The tokenizer of the world of sums."""

from deepseek_jax.data.tokenizer import closed_tokenizer
from deepseek_jax.worlds.arithmetic.corpus import PIECES


def arithmetic_tokenizer():
    """Make the tokenizer, in which a digit, a symbol or a set phrase is one token.

    It has 21 ids, <pad> and <eos> among them. A question of four operands is 9 tokens with its
    newline, and its worked answer about 22. Text that is not made of corpus.PIECES raises
    ValueError, and so do the names of the special tokens.
    """
    return closed_tokenizer(PIECES)
