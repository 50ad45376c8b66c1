"""Token ids of texts that users and tools wrote, in which markers of a chat template stay text.

Without this, a tool that prints <tool_call> could write the token of that name into a prompt.
"""

import itertools
from dataclasses import dataclass

from deepseek_jax.data.tokenizer import Tokenizer, id_of

# A code point that Unicode reserves: no text may use it
CUT = "\uffff"


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text; markers in it, such as <tool_call>, are treated as plain text.

    Each marker is cut in two, so that it does not become its special token. For a text without
    markers the result is tokenizer.encode(text). Half surrogates become "?". Never raises: with a
    closed vocabulary, pieces that it does not contain are left out.
    """
    text = text.encode("utf-8", "replace").decode()
    try:
        return [i for piece in _apart(tokenizer, text) for i in tokenizer.encode(piece)]
    # Any exception: the library raises no narrower one
    except Exception:
        backend = tokenizer.backend
        added = backend.get_added_tokens_decoder()
        pieces = backend.pre_tokenizer.pre_tokenize_str(text)
        ids = [backend.token_to_id(piece) for piece, _ in pieces]
        return [i for i in ids if i is not None and i not in added]


def _apart(tokenizer, text):
    """Return the text as a list of pieces without markers."""
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    cuts = []
    for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if token_id in tokenizer.markers and end - start > 1:
            # The match may include blanks around the marker, or be another spelling of it
            marker_start = text.find(tokenizer.markers[token_id], start, end)
            cuts.append(marker_start + 1 if marker_start >= 0 else (start + end) // 2)
    if not cuts:
        return [text]
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    return [part for piece in pieces for part in _apart(tokenizer, piece)]


@dataclass(frozen=True)
class CutTokenizer(Tokenizer):
    """A Tokenizer that splits a text at each CUT and encodes the pieces separately.

    It encodes texts that a template has placed within its own text.
    """

    def encode(self, text: str) -> list[int]:
        """Return the ids of the text, without CUT; see Tokenizer.encode."""
        return list(itertools.chain.from_iterable(map(super().encode, text.split(CUT))))


def cut_markers(tokenizer: Tokenizer, text: str):
    """Return the text with CUT inside each marker, for a CutTokenizer to encode as plain text."""
    try:
        return CUT.join(_apart(tokenizer, text))
    # The text is outside a closed vocabulary: the caller gets that error when it encodes the text
    except Exception:
        return text


def encode_parts(tokenizer: Tokenizer, template_parts: list[str], texts: list[str]) -> list[int]:
    """Return the ids of a template's parts with one of the texts between each two parts.

    Markers in the parts become their tokens; markers in the texts do not. Everything between two
    markers of the parts is encoded as one text, as it would be in the template's whole text.

    Args:
        template_parts: The texts that the template writes, one more than `texts`.
        texts: The texts that users or tools wrote.
    """
    ids, open_text = [], ""
    for part, text in itertools.zip_longest(template_parts, texts, fillvalue=""):
        end = 0
        for marker in tokenizer.marker_pattern.finditer(part):
            ids += encode_text(tokenizer, open_text + part[end : marker.start()])
            ids.append(id_of(tokenizer.backend, marker[0]))
            open_text, end = "", marker.end()
        open_text += part[end:] + text
    return ids + encode_text(tokenizer, open_text)
