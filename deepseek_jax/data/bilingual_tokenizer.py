"""The bilingual world's tokenizer."""

from deepseek_jax.data.bilingual import PIECES
from deepseek_jax.data.tokenizer import closed_tokenizer


def bilingual_tokenizer():
    """A number, a word, a tag or half of the R1-Zero template is one token: the longest that fits.

    About 200 ids, <pad> and <eos> the last. A sum's prompt is about 10 tokens, its worked answer
    about 23, a countdown's about 35. Text that is not made of bilingual.PIECES is a ValueError, the
    names of the special tokens included.
    """
    return closed_tokenizer(PIECES)
