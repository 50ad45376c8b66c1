"""Two tokenizers on one text."""

import numpy as np
import pytest

from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.read_tokenizer import deepseek_tokenizer, load_tokenizer
from deepseek_jax.distill.token_alignment import align_tokens, shared_vocabulary

TEXT = (
    "The natürliche Zahl 1234567 is  not prime: 127 * 9721 = 1234567.\n\n\tdef f(x):\n"
    "        return x**2  # 平方, naïve 🤖🧮 🇩🇪 done"
)
SENTENCE = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May. "
    "How many clips did she sell altogether?"
)


def spans(*pieces):
    """(begin, end) of pieces laid end to end."""
    ends = np.cumsum([len(piece) for piece in pieces])
    return [(int(end) - len(piece), int(end)) for piece, end in zip(pieces, ends, strict=True)]


def test_alignment_by_hand():
    """Oracle: by hand: "the" agrees, " unhappy" is two tokens against three, "!" agrees, "?!" is cut on one
    side only.
    """
    student = spans("the", " un", "happy", "!", "?!")
    teacher = spans("the", " u", "nhap", "py", "!", "?", "!")
    index, exact = align_tokens(student, teacher)
    assert index.tolist() == [0, 1, 2, 4, 5] and index.dtype == np.int32
    assert exact.tolist() == [True, False, False, True, False]


def test_a_side_with_fewer_tokens_leaves_the_others_alone():
    """Oracle: by hand: three tokens against one: only the first is compared."""
    index, exact = align_tokens(spans("a", "b", "c", "d"), spans("abc", "d"))
    assert index.tolist() == [0, -1, -1, 1] and exact.tolist() == [False, False, False, True]


def test_tokens_before_the_text_and_after_it():
    """Oracle: by hand: a begin token on one side shifts the index; end tokens align by their own span; the
    rest of a longer text is not aligned.
    """
    end = (2, 3)
    index, exact = align_tokens([*spans("a", "b"), end], [(0, 0), *spans("a", "b"), end])
    assert index.tolist() == [1, 2, 3] and exact.all()
    index, exact = align_tokens(spans("a", "b", "c"), spans("a", "b"))
    assert index.tolist() == [0, 1, -1] and exact.tolist() == [True, True, False]
    index, exact = align_tokens(spans("a"), [])
    assert index.tolist() == [-1]


def test_bytes_of_one_character_are_compared_in_order_and_never_called_exact():
    """Oracle: by hand: a character of three tokens on one side, of one or of three on the other."""
    three, one = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], spans("a", "x", "b")
    index, exact = align_tokens(three, one)
    assert index.tolist() == [0, 1, -1, -1, 2]
    assert exact.tolist() == [True, False, False, False, True]
    index, exact = align_tokens(three, three)
    assert index.tolist() == [0, 1, 2, 3, 4] and exact.tolist() == [True, False, False, False, True]


def test_a_token_without_text_belongs_to_the_piece_before_it():
    """Oracle: by hand: (0, 0) in the middle of the student's: its piece is not exact then."""
    student = [(0, 1), (1, 2), (0, 0), (2, 3)]
    index, exact = align_tokens(student, spans("a", "b", "c"))
    assert index.tolist() == [0, 1, -1, 2] and exact.tolist() == [True, False, False, True]


def test_white_space_left_out_of_spans_does_not_matter():
    """Oracle: by hand: " b" as (2, 3) on one side and (1, 3) on the other."""
    index, exact = align_tokens([(0, 1), (2, 3)], [(0, 1), (1, 3)])
    assert index.tolist() == [0, 1] and exact.all()


def test_random_cuts_of_a_text_align_where_a_search_says():
    """Oracle: for 300 pairs of random cuts, a search over all pairs of tokens: exact tokens have the same
    span on both sides; others have the same index within the smallest piece that both sides share.
    """
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(2, 20))
        cuts = [sorted({0, n, *rng.integers(1, n, rng.integers(0, n))}) for _ in range(2)]
        student, teacher = ([*zip(c, c[1:], strict=False)] for c in cuts)
        index, exact = align_tokens(student, teacher)
        common = set(cuts[0]) & set(cuts[1])
        for i, (begin, end) in enumerate(student):
            assert exact[i] == ((begin, end) in teacher)
            piece = max(c for c in common if c <= begin)
            depth = sum(piece <= b < begin for b, _ in student)
            inside = [
                j
                for j, (b, _) in enumerate(teacher)
                if b >= piece and not any(piece < c <= b for c in common)
            ]
            assert index[i] == (inside[depth] if depth < len(inside) else -1)


@pytest.fixture(scope="module")
def real_pair():
    """SmolLM2's and DeepSeek-V3's tokenizers, of 49,152 and 128,815 tokens."""
    return load_tokenizer(smollm2_gguf()).backend, deepseek_tokenizer().backend


@pytest.mark.parametrize("text, share", [(TEXT, 0.3), (SENTENCE, 0.9)])
def test_exact_tokens_of_real_tokenizers_are_the_same_text(real_pair, text, share):
    """Oracle: the tokenizers' own spelling of the token and of the text before it (both write bytes in the
    same alphabet). Measured: 0.32 of a text full of digits, code and emoji is exact, 0.95 of plain English.
    """
    mine, theirs = (t.encode(text, add_special_tokens=False) for t in real_pair)
    index, exact = align_tokens(mine.offsets, theirs.offsets)
    student_ids, teacher_ids = shared_vocabulary(
        *(t.get_vocab() for t in real_pair), end=("a", "a")
    )
    translate = dict(zip(student_ids.tolist(), teacher_ids.tolist(), strict=True))
    for i in np.flatnonzero(exact):
        j = index[i]
        assert mine.tokens[i] == theirs.tokens[j]
        assert "".join(mine.tokens[:i]) == "".join(theirs.tokens[:j])
        assert translate[mine.ids[i]] == theirs.ids[j]
    assert share < exact.mean() < 1
    paired = index[index >= 0]
    assert (np.diff(paired) > 0).all()


def test_shared_vocabularies_of_real_tokenizers(real_pair):
    """Oracle: the set of spellings on both sides; every pair is spelled alike, and no id occurs twice."""
    student, teacher = (t.get_vocab() for t in real_pair)
    student_ids, teacher_ids = shared_vocabulary(student, teacher, end=("a", "a"))
    assert len(student_ids) == len(student.keys() & teacher.keys()) > 20_000
    assert (np.diff(student_ids) > 0).all() and len(set(teacher_ids.tolist())) == len(teacher_ids)
    for i, j in zip(student_ids[::97], teacher_ids[::97], strict=True):
        assert real_pair[0].id_to_token(int(i)) == real_pair[1].id_to_token(int(j))


def test_the_end_tokens_are_a_pair_before_any_other():
    """Oracle: by hand: the student's <end> is paired with the teacher's </s>, which no other token gets."""
    student = {"a": 0, "b": 1, "<end>": 2, "</s>": 3, "c": 4}
    teacher = {"b": 0, "</s>": 1, "a": 2}
    ids = shared_vocabulary(student, teacher, end=("<end>", "</s>"))
    assert [x.tolist() for x in ids] == [[0, 1, 2], [2, 0, 1]]
    assert ids[0].dtype == np.int32
