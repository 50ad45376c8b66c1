"""Puzzles asked anew, and the corpus that teaches it."""

import numpy as np

from deepseek_jax.rewards.language import language_share
from deepseek_jax.worlds.bilingual import puzzles as bilingual_puzzles
from deepseek_jax.worlds.bilingual import rewrites as bilingual_rewrites
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.corpus import TEACHING, CorpusWriter
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer

SUM = bilingual_puzzles.Puzzle("sum", (7, 5, 3), (1, -1))
COUNTDOWN = bilingual_puzzles.Puzzle("countdown", (9, 4, 2), (-1, 1))


def test_puzzles_are_asked_anew_as_the_module_says():
    """Oracle: by hand."""
    assert bilingual_rewrites.translation(SUM, "en") == (
        "Say in Chinese: What is 7 + 5 - 3?",
        "7 + 5 - 3等于多少？",
    )
    assert bilingual_rewrites.translation(COUNTDOWN, "zh") == (
        "用英文说：凑出7，用9, 4, 2。",
        "Make 7 of 9, 4, 2.",
    )
    assert bilingual_rewrites.rewording(COUNTDOWN, "en") == (
        "Make 7 of 9, 4, 2., or ",
        "Tell me 7 of 9, 4, 2.",
    )
    assert bilingual_rewrites.rewording(SUM, "zh") == (
        "7 + 5 - 3等于多少？，改",
        "请说7 + 5 - 3。",
    )


def test_a_question_put_anew_is_in_one_language():
    """Oracle: rewards.language, which an augmentation asks too."""
    for puzzle in (SUM, COUNTDOWN):
        for language in bilingual.LANGUAGES:
            assert language_share(bilingual_rewrites.reworded(puzzle, language), language) == 1
            _, there = bilingual_rewrites.translation(puzzle, language)
            assert language_share(there, bilingual.other(language)) == 1


def test_the_teaching_corpus_has_its_share_of_rewrites_in_the_worlds_own_pieces():
    """Oracle: the tokenizer, which knows no other text, and a count within four standard errors."""
    rng, writer, tokenizer = np.random.default_rng(0), CorpusWriter(TEACHING), bilingual_tokenizer()
    documents = [writer.write(rng) for _ in range(2000)]
    assert all(tokenizer.encode(document) for document in documents)
    phrases = (
        "Say in Chinese",
        "用英文说",
        ", or . Assistant",
        "，改. Assistant",
        "User: Tell",
        "User: 请说",
    )
    share = np.mean([any(phrase in document for phrase in phrases) for document in documents])
    assert abs(share - TEACHING.rewrites) < 4 * np.sqrt(0.4 * 0.6 / 2000)
