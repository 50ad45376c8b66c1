"""Runs of units, and what an evaluation set shares with other texts."""

import numpy as np
import pytest

from deepseek_jax.synthesis.ngrams import Evaluation, ngrams, units


def test_units_are_words_of_letters_numbers_signs_and_single_chinese_characters():
    """Oracle: a list made by hand."""
    text = "<think>What's 12 + 3,\nnaïve?</think>红猫看狗，等于15。Ｘ"
    wanted = "what s 12 + 3 naïve 红 猫 看 狗 等 于 15 x".split()
    assert units(text) == tuple(wanted)


def brute_force(questions, solutions, text, n):
    """Compare every run of n of one text with every run of n of the others, in four loops."""
    found, tokens = False, units(text)
    for kind, texts in (("question", questions), ("solution", solutions)):
        for other in map(units, texts):
            length = min(n, len(other)) if kind == "question" else n
            for i in range(len(other) - length + 1):
                for j in range(len(tokens) - length + 1):
                    found |= length > 0 and other[i : i + length] == tokens[j : j + length]
    return found


@pytest.mark.parametrize("n", [2, 4])
def test_a_text_that_shares_a_run_is_found(n):
    """Oracle: brute_force, on random texts of few words, in both scripts."""
    rng, words = np.random.default_rng(0), "a b c 1 2 + 红 猫".split()
    texts = [" ".join(rng.choice(words, rng.integers(0, 9))) for _ in range(200)]
    questions, solutions, asked = texts[:3], texts[3:6], texts[6:]
    evaluation = Evaluation(questions, solutions, n)
    wanted = [brute_force(questions, solutions, text, n) for text in asked]
    assert [evaluation.shares_a_run(text) for text in asked] == wanted
    assert 0 < sum(wanted) < len(wanted)


def test_ten_words_in_a_row_are_a_leak_and_nine_are_not():
    """Oracle: by hand, with the published length."""
    told = "one two three four five six seven eight nine ten eleven twelve"
    evaluation = Evaluation([told], [], 10)
    assert evaluation.shares_a_run(
        "It began: TWO three, four five six seven eight nine ten eleven!"
    )
    assert not evaluation.shares_a_run("two three four five six seven eight nine ten no eleven")


def test_a_short_question_counts_as_a_whole_and_a_short_solution_not_at_all():
    """Oracle: by hand."""
    evaluation = Evaluation(["What is 2 + 3?"], ["5"], 10)
    assert evaluation.shares_a_run("User: what is 2 + 3 ? Assistant: 5")
    assert not evaluation.shares_a_run("What is 3 + 2? 5")
    assert ngrams((), 3) == set()
