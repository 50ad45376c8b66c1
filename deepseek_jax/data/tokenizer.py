"""Text to ids and back, with a checkpoint's own tokenizer or one of a closed vocabulary."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tokenizers

# Words that the message about a text outside a closed vocabulary lists
SHOWN_WORDS = 32


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with the special ids and the chat template that this project uses.

    backend: tokenizers.Tokenizer. eos_id ends a document and a completion. pad_id fills rows and
    may equal eos_id: masks come from lengths, never from ids. bos_id: the id that this tokenizer puts
    before plain text, None for most. chat: the transformers tokenizer that renders the
    checkpoint's chat template, or what stands for it, None without either. fim_ids: the tokens before prefix,
    suffix and middle in fill-in-the-middle, None if the vocabulary lacks them.
    """

    backend: tokenizers.Tokenizer
    eos_id: int
    pad_id: int
    bos_id: int | None = None
    chat: Any = None
    fim_ids: tuple[int, int, int] | None = None

    @cached_property
    def vocab_size(self):
        """The largest id plus one; a checkpoint's embedding can have more rows."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def markers(self):
        """{id: text} of the added tokens, special or not, that encode finds whole within a text.

        Runs of blanks, which some vocabularies add, are no markers.
        """
        literal = self.backend.encode_special_tokens
        added = self.backend.get_added_tokens_decoder().items()
        return {
            i: token.content
            for i, token in added
            if token.content.strip() and not (token.special and literal)
        }

    @cached_property
    def marker_pattern(self):
        """A compiled expression that finds markers in a text, the longest one where several begin."""
        longest_first = sorted(self.markers.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, text: str):
        """Ids of `text`, without bos and eos. Raises ValueError for text outside a closed vocabulary."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        # The library raises nothing narrower
        except Exception as error:
            raise ValueError(
                f"cannot encode {text!r}: it goes beyond this tokenizer's vocabulary {self._known(error)}"
            ) from error

    def _known(self, error):
        """The words of a vocabulary of words, or some of them; of another the library's error."""
        if not isinstance(self.backend.model, tokenizers.models.WordLevel):
            return f"({error})"
        words = sorted(self.backend.get_vocab(with_added_tokens=False))
        more = f" and {len(words) - SHOWN_WORDS} more" if len(words) > SHOWN_WORDS else ""
        return f"of {len(words)} words: {' '.join(map(repr, words[:SHOWN_WORDS]))}{more}"

    def decode(self, ids):
        """The text of `ids`, without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)


def closed_tokenizer(pieces, other: str | None = None):
    """A tokenizer whose tokens are the pieces, matched longest first, then `other`, <pad> and <eos>.

    other: the token of each stretch of text that is not made of pieces. Without it such text raises
    ValueError when it is encoded.
    """
    words = pieces if other is None else (*pieces, other)
    vocabulary = {word: i for i, word in enumerate(words)}
    model = tokenizers.models.WordLevel(vocabulary, unk_token=other)
    backend = tokenizers.Tokenizer(model)
    # A regular expression takes the first alternative that matches, not the longest
    longest_first = sorted(pieces, key=len, reverse=True)
    pattern = tokenizers.Regex("|".join(map(re.escape, longest_first)))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
    # Without a decoder, decoding joins the pieces with spaces
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<pad>", "<eos>"])
    # "<eos>" in a text is text, and so an error here
    backend.encode_special_tokens = True
    pad_id, eos_id = backend.token_to_id("<pad>"), backend.token_to_id("<eos>")
    return Tokenizer(backend, eos_id=eos_id, pad_id=pad_id)
