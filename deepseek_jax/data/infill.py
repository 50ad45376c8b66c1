"""Fill-in-the-middle: a share of the documents is learned in the order prefix, suffix, middle."""

import numpy as np

from deepseek_jax.data.tokenizer import Tokenizer

# Tokens that rearranging adds: three markers and eos
ADDED = 4
# Extra room for tokens that are cut: the two parts of one token encode to several tokens
SPARE = 8


def check_fim_rate(rate: float, tokenizer: Tokenizer):
    """Raise ValueError unless a rate of fill-in-the-middle can be used.

    It must be within 0..1, and 0 if the tokenizer has no markers.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"fim_rate={rate} is not a share of documents; set it within 0..1.")
    if rate and tokenizer.fim_ids is None:
        raise ValueError(
            f"fim_rate={rate}, but this tokenizer has no fill-in-the-middle tokens; set it to 0 or "
            "choose another tokenizer."
        )


def fill_in_the_middle(text: str, tokenizer: Tokenizer, *, length: int, rate: float, seed):
    """Turn a document and its eos into segments of at most `length` ids; rearrange a share `rate`.

    A rearranged segment reads fim_begin prefix fim_hole suffix fim_end middle eos. This is the
    order PSM of arXiv:2412.19437, section 4.1, where rate is 0.1. The text is cut at two characters
    drawn uniformly, before it is encoded, so that a part may end within a word, as where someone
    types (arXiv:2207.14255).

    A document that fits is one segment, and an empty one gives none. A longer document becomes
    several segments, each rearranged separately with probability `rate`. This is the context-level
    variant of arXiv:2207.14255: parts in different rows could not see each other. A segment that is
    not rearranged starts with the last token before it, so that every token except the first is
    predicted once.

    Args:
        text: The document.
        tokenizer: A tokenizer with fim_ids if rate is above 0.
        length: Most ids of a segment.
        rate: Share to rearrange, within 0..1.
        seed: Any seed of numpy's default_rng; the draws depend on nothing else.

    Returns:
        A list of segments, each a list of int.
    """
    if not text:
        return []
    rng = np.random.default_rng(seed)
    is_rearranged = rng.random() < rate
    if is_rearranged:
        segment = _arranged(map(tokenizer.encode, _parts(text, rng)), tokenizer)
        if len(segment) <= length:
            return [segment]
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    segments, start, last_index = [], 0, len(ids) - 1
    # If the text encodes to nothing, last_index is 0: a single end token predicts nothing
    while start <= last_index and last_index:
        # Leave room for the markers, for eos and for the tokens that a cut adds
        end = min(start + length - ADDED - SPARE, last_index)
        if is_rearranged and end > start:
            segments.append(_arranged_piece(ids[start:end], tokenizer, length, rng))
            # Every rearranged segment ends in eos, so after the last one the document's eos is skipped
            start = end + (end == last_index)
        else:
            # Start one token early: a row's first token is no target
            first_index = max(start - 1, 0)
            segments.append(ids[first_index : first_index + length])
            start = first_index + length
        is_rearranged = rng.random() < rate
    return segments


def _arranged_piece(ids, tokenizer, length, rng):
    """Rearrange some of a document's ids into at most `length` ids.

    The cuts are between characters. They are between ids if the text of the ids encodes to other
    ids, or if its parts encode to too many.
    """
    text = tokenizer.decode(ids)
    if tokenizer.encode(text) == ids:
        segment = _arranged(map(tokenizer.encode, _parts(text, rng)), tokenizer)
        if len(segment) <= length:
            return segment
    return _arranged(_parts(ids, rng), tokenizer)


def _parts(sequence, rng):
    """Return prefix, middle and suffix, cut at two places drawn uniformly."""
    start, end = sorted(rng.integers(len(sequence) + 1, size=2).tolist())
    return sequence[:start], sequence[start:end], sequence[end:]


def _arranged(prefix_middle_suffix, tokenizer):
    prefix, middle, suffix = prefix_middle_suffix
    fim_begin, fim_hole, fim_end = tokenizer.fim_ids
    return [fim_begin, *prefix, fim_hole, *suffix, fim_end, *middle, tokenizer.eos_id]
