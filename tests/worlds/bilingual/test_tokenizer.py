"""The bilingual world's tokenizer."""

import numpy as np
import pytest

from deepseek_jax.data.chat import R1_ZERO_TEMPLATE, render_prompt
from deepseek_jax.worlds.bilingual import general as bilingual_general
from deepseek_jax.worlds.bilingual import puzzles as bilingual_puzzles
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.corpus import CorpusWriter
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer, letters_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return bilingual_tokenizer()


def test_every_text_of_the_world_survives_encoding_and_decoding(tokenizer):
    """Oracle: the text itself, for 3,000 documents, all requests and 400 puzzles."""
    rng, writer = np.random.default_rng(0), CorpusWriter()
    texts = [writer.write(rng) for _ in range(3000)]
    for request in bilingual_general.all_requests():
        texts += [request.question, bilingual_general.solution(request)]
    for kind in bilingual_puzzles.KINDS * 100:
        puzzle = bilingual_puzzles.draw_puzzle(rng, kind)
        for language in bilingual.LANGUAGES:
            texts += [puzzle.question(language), bilingual_puzzles.solution(puzzle, language)]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_numbers_tags_and_words_are_one_token_each(tokenizer):
    """Oracle: by hand."""
    text = "<think>先12 + 3 = 15, then 15 - 9 = 6</think><answer>6</answer>"
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    expected = "<think>|先|12| + |3| = |15|, then |15| - |9| = |6|</think>|<answer>|6|</answer>"
    assert "|".join(pieces) == expected


def test_the_r1_zero_template_is_two_tokens(tokenizer):
    """Oracle: by hand: the halves of the published text, around a question of 6 and 2 pieces."""
    ids = render_prompt(tokenizer, "What is 3 + 8?", template="r1_zero")
    assert tokenizer.decode(ids) == R1_ZERO_TEMPLATE.replace("{question}", "What is 3 + 8?")
    assert len(ids) == 2 + 5


def test_ids_are_dense_and_special_tokens_vanish_in_text(tokenizer):
    """Oracle: by hand."""
    ids = [tokenizer.encode(piece) for piece in bilingual.PIECES]
    assert sorted([*sum(ids, []), tokenizer.eos_id, tokenizer.pad_id]) == list(range(202))
    assert tokenizer.vocab_size == 202
    one, two = tokenizer.encode("1"), tokenizer.encode("2")
    assert tokenizer.decode([*one, tokenizer.eos_id, *two, tokenizer.pad_id]) == "12"


@pytest.mark.parametrize("text", ["What is x", "3+8", "<eos>", "7<pad>", "好", "the  cat"])
def test_other_text_is_refused(tokenizer, text):
    """Oracle: the message repeats the text."""
    with pytest.raises(ValueError, match="beyond this tokenizer's vocabulary") as error:
        tokenizer.encode(text)
    assert repr(text) in str(error.value)


def test_letters_are_one_token_each_and_tags_stay_whole(tokenizer):
    """Oracle: by hand; each piece of the world survives encoding and decoding."""
    letters = letters_tokenizer()
    pieces = [letters.decode([i]) for i in letters.encode("<think>先12 + 3</think>cat")]
    assert pieces == ["<think>", "先", "1", "2", " ", "+", " ", "3", "</think>", "c", "a", "t"]
    for piece in bilingual.PIECES:
        assert letters.decode(letters.encode(piece)) == piece
    assert letters.vocab_size < tokenizer.vocab_size
    ids = [letters.encode(letter)[0] for letter in "abc"]
    assert ids == sorted(ids)
