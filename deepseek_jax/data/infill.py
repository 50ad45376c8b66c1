"""Fill-in-the-middle: some documents are learned as prefix, suffix, middle."""

import numpy as np

ADDED = 4  # tokens of what is rearranged: three that mark its parts, and eos
SPARE = 8  # a cut within a token makes several of it


def check_fim_rate(rate, tokenizer):
    """Raises ValueError for a rate outside 0..1, and for one above 0 without tokens to mark the parts."""
    if not 0 <= rate <= 1:
        raise ValueError(f"fim_rate={rate} is not a share of documents; set it within 0..1.")
    if rate and tokenizer.fim_ids is None:
        raise ValueError(
            f"fim_rate={rate}, but this tokenizer has no fill-in-the-middle tokens; set it to 0 or "
            "choose another tokenizer."
        )


def fill_in_the_middle(text, tokenizer, *, length, rate, seed):
    """A document and its eos as segments of at most `length` ids, [[int]]; a share `rate` are rearranged.

    Such a one reads fim_begin prefix fim_hole suffix fim_end middle eos, the order PSM of
    arXiv:2412.19437, section 4.1, where rate is 0.1. It is cut at two characters drawn uniformly,
    before it is encoded, so that a part may end within a word, as where someone types
    (arXiv:2207.14255). A document that fits is one segment, an empty one none. A longer one becomes
    several, a share `rate` of which is rearranged, each by itself (that paper's context-level
    variant: parts in different rows would know nothing of each other). The others start with the
    last token before them, so that every token but the first is predicted once. seed: what numpy's
    default_rng takes; it alone decides.
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
    while start <= last and last:
        end = min(start + length - ADDED - SPARE, last)
        if chosen and end > start:
            segments.append(_arranged_piece(ids[start:end], tokenizer, length, rng))
            start = end + (end == last)  # its eos is the document's then
        else:
            first = max(start - 1, 0)
            segments.append(ids[first : first + length])
            start = first + length
        chosen = rng.random() < rate
    return segments


def _arranged_piece(ids, tokenizer, length, rng):
    """Some of a document's ids, rearranged, in at most `length`: cut at characters, or, where these ids are
    not those of their text alone or would become too many, between two of them.
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
