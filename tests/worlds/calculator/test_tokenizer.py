"""The tokenizer of the world of long sums."""

import numpy as np

from deepseek_jax.worlds.calculator import corpus
from deepseek_jax.worlds.calculator.tokenizer import calculator_tokenizer


def test_long_sums_spell_digits_singly_and_the_parts_of_a_call_whole():
    """Oracle: by hand."""
    tokenizer = calculator_tokenizer()
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("31 + 48?\nadd(31, 48)")]
    assert pieces == ["3", "1", " + ", "4", "8", "?", "\n", "add(", "3", "1", ", ", "4", "8", ")"]
    assert tokenizer.vocab_size == 19 and tokenizer.eos_id == 18


def test_texts_of_long_sums_survive_encoding_and_decoding():
    """Oracle: the text itself, for 2,000 documents."""
    tokenizer, rng = calculator_tokenizer(), np.random.default_rng(0)
    for _ in range(2000):
        for text in corpus.write_document(rng):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            assert tokenizer.encode(corpus.OTHER)[0] not in ids


def test_other_text_is_one_token_and_never_a_special_one():
    """Oracle: by hand: an error that a tool may answer, and the names of the special tokens."""
    tokenizer = calculator_tokenizer()
    (other,) = tokenizer.encode(corpus.OTHER)
    assert tokenizer.decode(tokenizer.encode("Error: 12 is no call")) == "…12…"
    for text in ("<eos>", "<pad>", "7<eos>7"):
        assert set(tokenizer.encode(text)) <= {other, 7}
