"""Fill-in-the-middle: a share of the documents is learned in the order prefix, suffix, middle."""

import numpy as np

from deepseek_jax.data.tokenizer import Tokenizer

# Tokens that rearranging adds: three markers, and eos
ADDED = 4
# Room for a token that is cut: its two parts encode to several tokens
SPARE = 8


def check_fim_rate(rate: float, tokenizer: Tokenizer):
    """Raise ValueError for a rate outside 0..1, or above 0 where the tokenizer has no markers."""
    if not 0 <= rate <= 1:
        raise ValueError(f"fim_rate={rate} is not a share of documents; set it within 0..1.")
    if rate and tokenizer.fim_ids is None:
        raise ValueError(
            f"fim_rate={rate}, but this tokenizer has no fill-in-the-middle tokens; set it to 0 or "
            "choose another tokenizer."
        )


def fill_in_the_middle(text: str, tokenizer: Tokenizer, *, length: int, rate: float, seed):
    """A document and its eos as segments of at most `length` ids, [[int]]; a share `rate` is rearranged.

    A rearranged segment reads fim_begin prefix fim_hole suffix fim_end middle eos, the order PSM of
    arXiv:2412.19437, section 4.1, where rate is 0.1. It is cut at two characters drawn uniformly,
    before it is encoded, so that a part may end within a word, as where someone types
    (arXiv:2207.14255). A document that fits is one segment, an empty one gives none. A longer one becomes
    several segments, each rearranged on its own with probability `rate` (that paper's context-level
    variant: parts in different rows could not see each other). A segment that is not rearranged starts
    with the last token before it, so that every token but the first is predicted once.
    seed: any seed of numpy's default_rng; it alone decides.
    """
    if not text:
        return []
    rng = np.random.default_rng(seed)
    chosen = rng.random() < rate
    if chosen:
        whole = _arranged(map(tokenizer.encode, _parts(text, rng)), tokenizer)
        if len(whole) <= length:
            return [whole]
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    segments, start, last = [], 0, len(ids) - 1
    # last is 0 where the text encodes to nothing: an end token alone predicts nothing
    while start <= last and last:
        # Leave room for the markers, for eos and for the tokens that a cut adds
        end = min(start + length - ADDED - SPARE, last)
        if chosen and end > start:
            segments.append(_arranged_piece(ids[start:end], tokenizer, length, rng))
            # Every rearranged segment ends in eos, so after the last one the document's own eos is skipped
            start = end + (end == last)
        else:
            # Start one token early: a row's first token is no target
            first = max(start - 1, 0)
            segments.append(ids[first : first + length])
            start = first + length
        chosen = rng.random() < rate
    return segments


def _arranged_piece(ids, tokenizer, length, rng):
    """Rearrange some of a document's ids into at most `length` ids.

    Cut between characters; or between ids, where their text would encode to other ids or to too many.
    """
    text = tokenizer.decode(ids)
    if tokenizer.encode(text) == ids:
        segment = _arranged(map(tokenizer.encode, _parts(text, rng)), tokenizer)
        if len(segment) <= length:
            return segment
    return _arranged(_parts(ids, rng), tokenizer)


def _parts(whole, rng):
    """Prefix, middle and suffix, cut at two places drawn uniformly."""
    start, end = sorted(rng.integers(len(whole) + 1, size=2).tolist())
    return whole[:start], whole[start:end], whole[end:]


def _arranged(parts, tokenizer):
    prefix, middle, suffix = parts
    fim_begin, fim_hole, fim_end = tokenizer.fim_ids
    return [fim_begin, *prefix, fim_hole, *suffix, fim_end, *middle, tokenizer.eos_id]
