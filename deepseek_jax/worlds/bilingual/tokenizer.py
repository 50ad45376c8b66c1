"""The bilingual world's tokenizer, and one of single letters."""

from deepseek_jax.data.chat import R1_ZERO_TEMPLATE
from deepseek_jax.data.tokenizer import closed_tokenizer
from deepseek_jax.worlds.bilingual.words import PIECES, TAGS


def bilingual_tokenizer():
    """A number, a word, a tag or half of the R1-Zero template is one token: the longest that fits.

    About 200 ids, <pad> and <eos> the last. A sum's prompt is about 10 tokens, its worked answer
    about 23, a countdown's about 35. Text that is not made of words.PIECES raises ValueError, the
    names of the special tokens too.
    """
    return closed_tokenizer(PIECES)


def letters_tokenizer():
    """A tag, half of the R1-Zero template or any other single character is one token.

    For a student of the same texts whose teacher uses bilingual_tokenizer.
    """
    whole = [*TAGS, *R1_ZERO_TEMPLATE.split("{question}")]
    # Sorted: a letter's place is its token id, and the order of a set of str changes between processes
    letters = sorted({letter for piece in PIECES if piece not in whole for letter in piece})
    return closed_tokenizer([*whole, *letters])
