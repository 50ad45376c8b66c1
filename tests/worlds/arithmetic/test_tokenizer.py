"""The tokenizer of the world of sums."""

import numpy as np
import pytest

from deepseek_jax.worlds.arithmetic import corpus as arithmetic
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer


def test_texts_of_the_small_world_survive_encoding_and_decoding():
    """Oracle: the text itself, for 2,000 documents of every style."""
    tokenizer, rng = arithmetic_tokenizer(), np.random.default_rng(0)
    for _ in range(2000):
        text = arithmetic.write_document(rng)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_small_world_spells_digits_singly_and_phrases_whole():
    """Oracle: by hand."""
    tokenizer = arithmetic_tokenizer()
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("What is 3 + 8?\n3 + 8 = 11; 9, 0")]
    assert "|".join(pieces) == "What is |3| + |8|?\n|3| + |8| = |1|1|; |9|, |0"
    question = arithmetic.PLAIN_TEMPLATE.format(question=arithmetic.question((3, 8, 5, 9)))
    assert len(tokenizer.encode(question)) == 9
    assert len(tokenizer.encode(arithmetic.worked((3, 8, 5, 9)))) == 22


def test_small_world_ids_are_dense_and_its_special_tokens_vanish_in_text():
    """Oracle: by hand."""
    tokenizer = arithmetic_tokenizer()
    ids = [tokenizer.encode(piece) for piece in arithmetic.PIECES]
    assert sorted([*sum(ids, []), tokenizer.eos_id, tokenizer.pad_id]) == list(range(21))
    assert tokenizer.vocab_size == 21
    assert tokenizer.decode([1, tokenizer.eos_id, 2, tokenizer.pad_id]) == "12"


@pytest.mark.parametrize("text", ["What is x", "3+8", "<eos>", "7<pad>", "What is 3?"])
def test_small_world_refuses_other_text(text):
    """Oracle: the message repeats the text."""
    with pytest.raises(ValueError, match="beyond this tokenizer's vocabulary") as error:
        arithmetic_tokenizer().encode(text)
    assert repr(text) in str(error.value)
