"""The tokenizer of the world of guesses."""

import numpy as np

from deepseek_jax.worlds.guess import corpus
from deepseek_jax.worlds.guess.tokenizer import guess_tokenizer


def test_a_turn_of_a_game_is_three_tokens_and_survives_decoding():
    """Oracle: the text itself, for 500 games; a number is one token, by hand."""
    tokenizer, rng = guess_tokenizer(), np.random.default_rng(0)
    for _ in range(500):
        for text in corpus.write_document(rng):
            ids = tokenizer.encode(text)
            assert len(ids) == 3 and tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == 23 and tokenizer.eos_id == 22


def test_other_text_is_one_token_and_never_a_special_one():
    """Oracle: by hand: the game's answer to what is no guess, and the names of the special tokens."""
    tokenizer = guess_tokenizer()
    (other,) = tokenizer.encode(corpus.OTHER)
    assert tokenizer.encode("guess a whole number\n") == [other, *tokenizer.encode("\n")]
    assert set(tokenizer.encode("<eos><pad>")) == {other}
