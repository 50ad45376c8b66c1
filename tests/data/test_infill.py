"""Documents rearranged to be filled in, put back by hand."""

import numpy as np
import pytest

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.infill import check_fim_rate, fill_in_the_middle
from deepseek_jax.data.tokenizer import arithmetic_tokenizer

BYTES = byte_tokenizer()
TEXTS = (
    "def f(x):\n    return x ** 2\n",
    "日本語 and Ελληνικά, 😀👨‍👩‍👧 e\u0301\r\n\t 1,072.50 \x00",
    "<fim_begin>a<fim_hole>b<fim_end>c<eos>",
    "ab",
    "a",
)


def parts(ids, tokenizer):
    """(prefix, middle, suffix), texts, of ids in the order PSM."""
    begin, hole, end = (ids.index(i) for i in tokenizer.fim_ids)
    assert begin == 0 < hole < end and sum(i in tokenizer.fim_ids for i in ids) == 3
    prefix, suffix, middle = ids[1:hole], ids[hole + 1 : end], ids[end + 1 :]
    return tuple(map(tokenizer.decode, (prefix, middle, suffix)))


@pytest.mark.parametrize("text", TEXTS)
def test_put_back_in_order_the_parts_are_the_document(text, deepseek):
    """Oracle: the text itself, under 50 cuts by each tokenizer that has the tokens."""
    for tokenizer in (BYTES, deepseek):
        cuts = set()
        for seed in range(50):
            ids = fill_in_the_middle(text, tokenizer, rate=1.0, seed=seed)
            prefix, middle, suffix = parts(ids, tokenizer)
            assert prefix + middle + suffix == text
            cuts.add((len(prefix), len(middle)))
        assert len(cuts) > min(len(text), 10)


def test_deepseeks_markers_stand_where_the_paper_puts_them(deepseek):
    """Oracle: the text that the paper's template makes of the parts, its markers found by the tokenizer."""
    ids = fill_in_the_middle("for i in range(10):\n    pass", deepseek, rate=1.0, seed=0)
    prefix, middle, suffix = parts(ids, deepseek)
    assert prefix and middle and suffix
    text = f"<｜fim▁begin｜>{prefix}<｜fim▁hole｜>{suffix}<｜fim▁end｜>{middle}"
    assert ids == deepseek.backend.encode(text, add_special_tokens=False).ids


def test_the_rate_is_the_share_of_documents_that_are_rearranged():
    """Oracle: the binomial, 5 standard deviations; what is left alone is encoded as ever."""
    n, rate, text = 20_000, 0.1, "some text"
    documents = [fill_in_the_middle(text, BYTES, rate=rate, seed=(0, 0, i)) for i in range(n)]
    rearranged = sum(ids[0] == BYTES.fim_ids[0] for ids in documents)
    assert documents.count(BYTES.encode(text)) == n - rearranged
    assert abs(rearranged - n * rate) < 5 * np.sqrt(n * rate * (1 - rate))


def test_cuts_are_uniform_over_the_characters():
    """Oracle: prefix, middle and suffix are each a third, by symmetry; a spacing of two uniform cuts
    has standard deviation 1/sqrt(18) of the length; 5 standard errors, and half a character."""
    text, n = "é" * 300, 2000
    lengths = np.array(
        [
            list(map(len, parts(fill_in_the_middle(text, BYTES, rate=1.0, seed=i), BYTES)))
            for i in range(n)
        ]
    )
    assert np.abs(lengths.mean(0) - 100).max() < 5 * 300 / np.sqrt(18 * n) + 0.5
    assert lengths.min() == 0  # a part may be empty


def test_seed_epoch_and_index_each_decide():
    """Oracle: one seed twice; 100 seeds that differ in one number give nearly as many cuts."""
    text = "abcdefghij" * 50

    def rearrange(seed):
        return tuple(fill_in_the_middle(text, BYTES, rate=1.0, seed=seed))

    assert rearrange((1, 2, 3)) == rearrange((1, 2, 3))
    for seeds in ([(i, 0, 0) for i in range(100)], [(0, i, 0) for i in range(100)]):
        assert len(set(map(rearrange, seeds))) > 95  # 125,250 cuts: two of 100 agree in 4%


def test_an_empty_document_and_rate_zero_change_nothing():
    """Oracle: the plain encoding."""
    assert fill_in_the_middle("", BYTES, rate=1.0, seed=0) == []
    assert fill_in_the_middle("ab", BYTES, rate=0.0, seed=0) == BYTES.encode("ab")


def test_a_rate_that_cannot_be_kept_is_refused():
    """Oracle: the message names the field."""
    check_fim_rate(0.1, BYTES)
    check_fim_rate(0.0, arithmetic_tokenizer())
    with pytest.raises(ValueError, match="config.data.fim_rate=0.1, but this tokenizer has no"):
        check_fim_rate(0.1, arithmetic_tokenizer())
    for rate in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"config.data.fim_rate={rate} is no share"):
            check_fim_rate(rate, BYTES)
