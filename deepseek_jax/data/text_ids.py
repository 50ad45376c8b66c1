"""Token ids of texts that users and tools wrote: a chat template's markers in them stay text."""

import itertools
from dataclasses import dataclass

from deepseek_jax.data.tokenizer import Tokenizer

# A code point that no text may use
CUT = "\uffff"


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` as text: markers within it, such as <tool_call>, are cut in two and become no tokens of
    their own.

    Without markers this is tokenizer.encode. Half surrogates become "?". Never raises: a closed vocabulary
    leaves out what it has no piece for.
    """
    text = text.encode("utf-8", "replace").decode()
    try:
        return [i for piece in _apart(tokenizer, text) for i in tokenizer.encode(piece)]
    # The library raises nothing narrower
    except Exception:
        backend = tokenizer.backend
        added = backend.get_added_tokens_decoder()
        pieces = backend.pre_tokenizer.pre_tokenize_str(text)
        ids = [backend.token_to_id(piece) for piece, _ in pieces]
        return [i for i in ids if i is not None and i not in added]


def _apart(tokenizer, text):
    """The text in pieces that hold no marker."""
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    cuts = []
    for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if i in tokenizer.markers and end - start > 1:
            # A marker may have taken blanks around it, or another spelling
            at = text.find(tokenizer.markers[i], start, end)
            cuts.append(at + 1 if at >= 0 else (start + end) // 2)
    if not cuts:
        return [text]
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    return [part for piece in pieces for part in _apart(tokenizer, piece)]


@dataclass(frozen=True)
class CutTokenizer(Tokenizer):
    """Encodes what stands on either side of CUT apart: for texts within a template's."""

    def encode(self, text: str):
        """Ids of the text, without CUT: see Tokenizer.encode."""
        return list(itertools.chain.from_iterable(map(super().encode, text.split(CUT))))


def cut_markers(tokenizer: Tokenizer, text: str):
    """The text with CUT in each marker, for a CutTokenizer to encode as text."""
    try:
        return CUT.join(_apart(tokenizer, text))
    # A closed vocabulary does not hold the text: its own error comes where it is encoded
    except Exception:
        return text


def encode_parts(tokenizer: Tokenizer, parts: list[str], texts: list[str]) -> list[int]:
    """Ids of a template's parts with a text between each two.

    Markers in the parts become their tokens, and those in the texts do not. What lies between two tokens of
    the parts is encoded as one text, as the template's whole text would be.
    """
    ids, open_text = [], ""
    for part, text in itertools.zip_longest(parts, texts, fillvalue=""):
        end = 0
        for found in tokenizer.marker_pattern.finditer(part):
            ids += encode_text(tokenizer, open_text + part[end : found.start()])
            ids.append(tokenizer.backend.token_to_id(found[0]))
            open_text, end = "", found.end()
        open_text += part[end:] + text
    return ids + encode_text(tokenizer, open_text)
