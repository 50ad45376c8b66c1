"""Documents rearranged to be filled in, put back by hand."""

import numpy as np
import pytest

from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.infill import check_fim_rate, fill_in_the_middle
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer

BYTES = byte_tokenizer()
TEXTS = (
    "def f(x):\n    return x ** 2\n",
    "日本語 and Ελληνικά, 😀👨‍👩‍👧 e\u0301\r\n\t 1,072.50 \x00",
    "<fim_begin>a<fim_hole>b<fim_end>c<eos>",
    "ab",
    "a",
)


def whole(text, tokenizer, **how):
    """The ids of a document that fits, without its eos."""
    ((*ids, eos),) = fill_in_the_middle(text, tokenizer, length=10_000, **how)
    assert eos == tokenizer.eos_id
    return ids


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
            ids = whole(text, tokenizer, rate=1.0, seed=seed)
            prefix, middle, suffix = parts(ids, tokenizer)
            assert prefix + middle + suffix == text
            cuts.add((len(prefix), len(middle)))
        assert len(cuts) > min(len(text), 10)


def test_deepseeks_markers_stand_where_the_paper_puts_them(deepseek):
    """Oracle: the text that the paper's template makes of the parts, its markers found by the tokenizer."""
    ids = whole("for i in range(10):\n    pass", deepseek, rate=1.0, seed=0)
    prefix, middle, suffix = parts(ids, deepseek)
    assert prefix and middle and suffix
    text = f"<｜fim▁begin｜>{prefix}<｜fim▁hole｜>{suffix}<｜fim▁end｜>{middle}"
    assert ids == deepseek.backend.encode(text, add_special_tokens=False).ids


def test_the_rate_is_the_share_of_documents_that_are_rearranged():
    """Oracle: the binomial, 5 standard deviations; what is left alone is encoded as ever."""
    n, rate, text = 20_000, 0.1, "some text"
    documents = [whole(text, BYTES, rate=rate, seed=(0, 0, i)) for i in range(n)]
    rearranged = sum(ids[0] == BYTES.fim_ids[0] for ids in documents)
    assert documents.count(BYTES.encode(text)) == n - rearranged
    assert abs(rearranged - n * rate) < 5 * np.sqrt(n * rate * (1 - rate))


def test_cuts_are_uniform_over_the_characters():
    """Oracle: prefix, middle and suffix are each a third, by symmetry; a spacing of two uniform cuts
    has standard deviation 1/sqrt(18) of the length; 5 standard errors, and half a character."""
    text, n = "é" * 300, 2000
    lengths = np.array(
        [list(map(len, parts(whole(text, BYTES, rate=1.0, seed=i), BYTES))) for i in range(n)]
    )
    assert np.abs(lengths.mean(0) - 100).max() < 5 * 300 / np.sqrt(18 * n) + 0.5
    assert lengths.min() == 0  # a part may be empty


def test_seed_epoch_and_index_each_decide():
    """Oracle: one seed twice; 100 seeds that differ in one number give nearly as many cuts."""
    text = "abcdefghij" * 50

    def rearrange(seed):
        return tuple(whole(text, BYTES, rate=1.0, seed=seed))

    assert rearrange((1, 2, 3)) == rearrange((1, 2, 3))
    for seeds in ([(i, 0, 0) for i in range(100)], [(0, i, 0) for i in range(100)]):
        assert len(set(map(rearrange, seeds))) > 95  # 125,250 cuts: two of 100 agree in 4%


def test_an_empty_document_and_rate_zero_change_nothing():
    """Oracle: the plain encoding; an empty document gives no segment."""
    assert fill_in_the_middle("", BYTES, length=10, rate=1.0, seed=0) == []
    assert whole("ab", BYTES, rate=0.0, seed=0) == BYTES.encode("ab")


def test_a_rate_that_cannot_be_kept_is_refused():
    """Oracle: the message names the field."""
    check_fim_rate(0.1, BYTES)
    check_fim_rate(0.0, arithmetic_tokenizer())
    with pytest.raises(ValueError, match="^fim_rate=0.1, but this tokenizer has no"):
        check_fim_rate(0.1, arithmetic_tokenizer())
    for rate in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"^fim_rate={rate} is not a share"):
            check_fim_rate(rate, BYTES)


LONG = {
    "bytes": "".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(300)),
    "deepseek": " ".join(f"{n} règles, 日本語 {n * n};" for n in range(900)),
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_segments_put_back_in_order_are_the_document(name, rate, deepseek):
    """Oracle: the document's own ids: each rearranged segment has its three markers, its eos, and between
    them the text that is next; each other one starts with the last id before it, where there is one.
    """
    tokenizer, text, length = {"bytes": BYTES, "deepseek": deepseek}[name], LONG[name], 64
    left = tokenizer.encode(text)
    segments = fill_in_the_middle(text, tokenizer, length=length, rate=rate, seed=5)
    before, pieces = [], 0
    for segment in segments:
        assert len(segment) <= length
        if segment[0] == tokenizer.fim_ids[0]:
            assert segment[-1] == tokenizer.eos_id
            piece = "".join(parts(segment[:-1], tokenizer))
            ids = tokenizer.encode(piece)
            assert left[: len(ids)] == ids and len(ids) in (len(left), length - 12)
            pieces += 1
        else:
            assert segment[: len(before)] == before
            ids = [i for i in segment[len(before) :] if i != tokenizer.eos_id]
            assert left[: len(ids)] == ids
        left, before = left[len(ids) :], ids[-1:]
    assert not left and segments[-1][-1] == tokenizer.eos_id
    deviation = np.sqrt(len(segments) * rate * (1 - rate))
    assert abs(pieces - len(segments) * rate) <= 5 * deviation and len(segments) > 100


def test_a_piece_that_begins_within_a_character_is_cut_between_bytes():
    """Oracle: the bytes of the document, all of its characters of three; every byte is there, in order."""
    text = "語" * 100
    segments = fill_in_the_middle(text, BYTES, length=32, rate=1.0, seed=0)
    begin, hole, end = BYTES.fim_ids
    found = []
    for *segment, _ in segments:
        h, e = segment.index(hole), segment.index(end)
        assert segment[0] == begin
        found += segment[1:h] + segment[e + 1 :] + segment[h + 1 : e]
    assert bytes(found) == text.encode()


def test_rows_without_room_for_a_piece_keep_the_order():
    """Oracle: by hand: of 12 ids, four would be markers and eos, and eight are kept free for cuts."""
    segments = fill_in_the_middle("a" * 40, BYTES, length=12, rate=1.0, seed=0)
    assert sum(segments, [])[0] == ord("a") and max(map(len, segments)) == 12
