"""The bilingual world's tokenizer, and one of single letters."""

from deepseek_jax.data.chat import R1_ZERO_TEMPLATE
from deepseek_jax.data.tokenizer import closed_tokenizer
from deepseek_jax.worlds.bilingual.words import PIECES, TAGS


def bilingual_tokenizer():
    """Make the tokenizer: a number, word, tag or half of the R1-Zero template is one token.

    The longest piece that fits is the token. There are about 200 ids, <pad> and <eos> the last. A
    sum's prompt is about 10 tokens, its worked answer about 23, a countdown's about 35. Text that
    is not made of words.PIECES raises ValueError, and so do the names of the special tokens.
    """
    return closed_tokenizer(PIECES)


def letters_tokenizer():
    """Make a tokenizer of single characters, except tags and halves of the R1-Zero template.

    It is for a student of the same texts when its teacher uses bilingual_tokenizer.
    """
    whole = [*TAGS, *R1_ZERO_TEMPLATE.split("{question}")]
    # Sorted, because a letter's place is its token id, and a set of str has another order in each
    # process
    letters = sorted({letter for piece in PIECES if piece not in whole for letter in piece})
    return closed_tokenizer([*whole, *letters])
