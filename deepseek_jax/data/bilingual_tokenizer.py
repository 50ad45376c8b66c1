"""The bilingual world's tokenizer."""

import re

import tokenizers

from deepseek_jax.data.bilingual import PIECES
from deepseek_jax.data.tokenizer import Tokenizer


def bilingual_tokenizer():
    """A number, a word, a tag or half of the R1-Zero template is one token: the longest that fits.

    About 200 ids, <pad> and <eos> the last. A sum's prompt is about 10 tokens, its worked answer
    about 23, a countdown's about 35. Text that is not made of bilingual.PIECES is a ValueError, the
    names of the special tokens included.
    """
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({piece: i for i, piece in enumerate(PIECES)})
    )
    longest_first = sorted(PIECES, key=len, reverse=True)
    pieces = tokenizers.Regex("|".join(map(re.escape, longest_first)))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(pieces, "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<pad>", "<eos>"])
    backend.encode_special_tokens = True  # "<eos>" in a text is text, and so an error here
    pad_id, eos_id = backend.token_to_id("<pad>"), backend.token_to_id("<eos>")
    return Tokenizer(backend, eos_id=eos_id, pad_id=pad_id)
