"""Fill-in-the-middle: some documents are learned as prefix, suffix, middle."""

import numpy as np


def check_fim_rate(rate, tokenizer):
    """Raises ValueError for a rate outside 0..1, and for one above 0 without tokens to mark the parts."""
    if not 0 <= rate <= 1:
        raise ValueError(f"config.data.fim_rate={rate} is no share of documents; set it in 0..1.")
    if rate and tokenizer.fim_ids is None:
        raise ValueError(
            f"config.data.fim_rate={rate}, but this tokenizer has no fill-in-the-middle tokens; "
            "set config.data.fim_rate to 0 or choose another tokenizer."
        )


def fill_in_the_middle(text, tokenizer, *, rate, seed):
    """Ids of a document without its eos; of a share `rate` of them, parted in three and rearranged.

    Such a one reads fim_begin prefix fim_hole suffix fim_end middle, the order PSM of
    arXiv:2412.19437, section 4.1, where rate is 0.1. It is cut at two characters drawn uniformly,
    before it is encoded, so that a part may end within a word, as where someone types
    (arXiv:2207.14255). An empty document stays as it is. seed: what numpy's default_rng takes;
    it alone decides.
    """
    if not rate or not text:
        return tokenizer.encode(text)
    rng = np.random.default_rng(seed)
    if rng.random() >= rate:
        return tokenizer.encode(text)
    start, end = sorted(rng.integers(len(text) + 1, size=2).tolist())
    prefix, middle, suffix = map(tokenizer.encode, (text[:start], text[start:end], text[end:]))
    fim_begin, fim_hole, fim_end = tokenizer.fim_ids
    return [fim_begin, *prefix, fim_hole, *suffix, fim_end, *middle]
