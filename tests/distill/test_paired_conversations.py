"""One conversation in two tokenizers: which tokens are aligned."""

from types import SimpleNamespace

import numpy as np
import pytest

from deepseek_jax.data.mixture import Mixture
from deepseek_jax.distill import paired_conversations
from deepseek_jax.distill.paired_conversations import pair_conversation
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer, letters_tokenizer
from tests.data.rows import with_rows
from tests.turns import turns

pack_paired = with_rows(paired_conversations.pack_paired)

LETTERS, WORDS = letters_tokenizer(), bilingual_tokenizer()
TEXT = "<think>first 7 + 5 = 12</think><answer>12</answer>"


def test_a_letter_stands_beside_the_word_that_it_begins():
    """Oracle: by hand: tags, one-digit numbers and the end are one token in both; in a word of several
    letters only the first letter is aligned, and not exactly.
    """
    messages = turns("What is 7 + 5?", TEXT)
    found = pair_conversation(LETTERS, WORDS, messages, template="{question}\n")
    ids, is_target, teacher_ids, teacher_index, exact = found
    names = [LETTERS.backend.id_to_token(i) for i in ids]
    theirs = [WORDS.backend.id_to_token(i) for i in teacher_ids]
    assert (teacher_index[~np.array(is_target)] == -1).all()
    pairs = [(names[i], theirs[j], bool(exact[i])) for i, j in enumerate(teacher_index) if j >= 0]
    assert pairs == [
        ("<think>", "<think>", True),
        ("f", "first ", False),
        ("7", "7", True),
        (" ", " + ", False),
        ("5", "5", True),
        (" ", " = ", False),
        ("1", "12", False),
        ("</think>", "</think>", True),
        ("<answer>", "<answer>", True),
        ("1", "12", False),
        ("</answer>", "</answer>", True),
        ("<eos>", "<eos>", True),
    ]


def test_letters_spell_every_text_back():
    """Oracle: the text itself."""
    assert LETTERS.decode(LETTERS.encode(TEXT + "猫看鱼")) == TEXT + "猫看鱼"


def test_rows_hold_both_and_too_long_ones_are_left_out():
    """Oracle: pair_conversation of each text that fits."""
    texts = [turns(f"What is {k} + 5?", f"{k + 5}") for k in range(1, 9)]
    long = turns("What is 7 + 5?", TEXT)
    source = Mixture(([{"messages": m, "weight": 2.0} for m in (*texts, long)],), (1,))
    how = dict(template="{question}\n", sequence_length=24, batch_size=8, seed=0)
    iterator = iter(pack_paired(source, LETTERS, WORDS, packing=False, **how))
    batch = next(iterator)
    iterator.close()
    wanted = {}
    for messages in texts:
        paired = pair_conversation(LETTERS, WORDS, messages, template="{question}\n")
        wanted[tuple(paired[0])] = paired
    for row in range(8):
        n, m = (int((batch[f"{k}segment_ids"][row] > 0).sum()) for k in ("", "teacher_tokens_"))
        ids, _, teacher_ids, teacher_index, exact = wanted[tuple(batch["tokens"][row, :n].tolist())]
        np.testing.assert_array_equal(batch["teacher_tokens"][row, :m], teacher_ids)
        np.testing.assert_array_equal(batch["teacher_index"][row, :n], teacher_index)
        np.testing.assert_array_equal(batch["exact"][row, :n], exact)
    assert set(np.unique(batch["loss_weights"])) == {0, 2}
    with pytest.raises(ValueError, match="packing=True: two tokenizers"):
        pack_paired(source, LETTERS, WORDS, packing=True, **how)


def test_a_text_that_one_of_the_tokenizers_does_not_know_is_named_by_its_index():
    """Oracle: by hand: the second conversation has a word of letters alone."""
    known, unknown = turns("What is 1 + 5?", "6"), turns("What is 1 + 5?", "GF")
    LETTERS.encode("GF")
    source = Mixture(([{"messages": m, "weight": 1.0} for m in (known, unknown)],), (1,))
    how = dict(template="{question}\n", sequence_length=24, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="^conversation 1 of the data: cannot encode .GF."):
        list(zip(range(9), pack_paired(source, LETTERS, WORDS, packing=False, **how), strict=False))


def test_texts_are_cut_without_special_tokens_and_have_an_end():
    """Oracle: by hand: one token of two letters, and the end behind it."""

    def encode(text, add_special_tokens=True):
        return SimpleNamespace(offsets=[(0, 0)] * add_special_tokens + [(0, len(text))])

    tokenizer = SimpleNamespace(backend=SimpleNamespace(encode=encode))
    assert paired_conversations._offsets(tokenizer, "ab") == [(0, 2), (2, 3)]


@pytest.mark.parametrize(
    "is_target, begins", [([0, 1, 1, 0, 1], [1, 4]), ([1, 0], [0]), ([0, 0, 1], [2]), ([0], [])]
)
def test_texts_begin_where_targets_do(is_target, begins):
    """Oracle: by hand."""
    assert paired_conversations._begins(np.array(is_target, bool)).tolist() == begins


def test_a_conversation_fits_where_both_of_its_forms_do():
    """Oracle: by hand, in rows of three."""
    sizes = [(3, 3), (3, 4), (4, 3), (1, 1)]
    element = [dict(tokens=np.ones(a), teacher_tokens=np.ones(b)) for a, b in sizes]
    found = paired_conversations._FittingBoth(3).flat_map(element)
    assert [(len(x["tokens"]), len(x["teacher_tokens"])) for x in found] == [(3, 3), (1, 1)]
