"""Text to ids and back, with a checkpoint's tokenizer or with one of a closed vocabulary."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tokenizers

# Most words of a closed vocabulary that an error message lists
SHOWN_WORDS = 32


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with the special ids and the chat template that this project uses.

    Attributes:
        backend: The tokenizers.Tokenizer that encodes and decodes.
        eos_id: The id that ends a document and a completion.
        pad_id: The id that fills rows. It may equal eos_id: masks come from lengths, never from
            ids.
        bos_id: The id that this tokenizer puts before plain text. Most put none there: None.
        chat: The transformers tokenizer that renders the checkpoint's chat template, or an object
            that replaces it, such as DeepseekV32Chat. None if there is neither.
        fim_ids: The tokens before prefix, suffix and middle in fill-in-the-middle. None if the
            vocabulary does not have them.
    """

    backend: tokenizers.Tokenizer
    eos_id: int
    pad_id: int
    bos_id: int | None = None
    chat: Any = None
    fim_ids: tuple[int, int, int] | None = None

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus one; a checkpoint's embedding can have more rows."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def markers(self) -> dict[int, str]:
        """{id: text} of the added tokens, special or not, that encode finds whole within a text.

        Runs of blanks, which some vocabularies add as tokens, are not markers.
        """
        literal = self.backend.encode_special_tokens
        added = self.backend.get_added_tokens_decoder().items()
        return {
            i: token.content
            for i, token in added
            if token.content.strip() and not (token.special and literal)
        }

    @cached_property
    def marker_pattern(self) -> re.Pattern[str]:
        """Compiled regular expression for markers; where several begin, it takes the longest."""
        longest_first = sorted(self.markers.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without bos and eos.

        Raises:
            ValueError: The text has a part that a closed vocabulary does not contain.
        """
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        # Any exception: the library raises no narrower one
        except Exception as error:
            raise ValueError(
                f"cannot encode {text!r}: it goes beyond this tokenizer's vocabulary {self._known(error)}"
            ) from error

    def _known(self, error):
        """Describe the vocabulary: its first words if it has words, else the library's error."""
        if not isinstance(self.backend.model, tokenizers.models.WordLevel):
            return f"({error})"
        words = sorted(self.backend.get_vocab(with_added_tokens=False))
        more = f" and {len(words) - SHOWN_WORDS} more" if len(words) > SHOWN_WORDS else ""
        return f"of {len(words)} words: {' '.join(map(repr, words[:SHOWN_WORDS]))}{more}"

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)


def id_of(backend: tokenizers.Tokenizer, token: str) -> int:
    """Return the id of a token that the vocabulary has."""
    number = backend.token_to_id(token)
    assert number is not None
    return number


def closed_tokenizer(pieces: Sequence[str], other: str | None = None) -> Tokenizer:
    """Build a tokenizer with a closed vocabulary: the pieces, then `other`, <pad> and <eos>.

    A text is split into pieces, the longest match first.

    Args:
        pieces: Texts, one token each.
        other: The token for each stretch of text that no piece matches. Without it, encoding such a
            text raises ValueError.
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
    # "<eos>" in a text is ordinary text, which this vocabulary does not contain: an error
    backend.encode_special_tokens = True
    pad_id, eos_id = id_of(backend, "<pad>"), id_of(backend, "<eos>")
    return Tokenizer(backend, eos_id=eos_id, pad_id=pad_id)
