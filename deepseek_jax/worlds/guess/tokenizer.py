"""The tokenizer of the world of guesses."""

from deepseek_jax.data.tokenizer import closed_tokenizer
from deepseek_jax.worlds.guess.corpus import OTHER, PIECES


def guess_tokenizer():
    """Make the tokenizer, in which a number, an answer or the question is one token.

    It has 23 ids, <pad> and <eos> the last. A turn is 4 tokens: the question or answer, a line
    break, a guess and the end token. Each stretch of text that is not made of corpus.PIECES is the
    one token OTHER.
    """
    return closed_tokenizer(PIECES, other=OTHER)
