"""Puzzles of the bilingual world: read back from their text and solved by brute force."""

import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from deepseek_jax.rewards.format import think_answer_format
from deepseek_jax.rewards.language import language_consistency
from deepseek_jax.worlds.bilingual import puzzles
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.puzzle_rewards import puzzle_answer
from deepseek_jax.worlds.bilingual.puzzles import KINDS, Puzzle, draw_puzzle

STEP = re.compile(r"(\d+ [+-] \d+) = (\d+)")
CHAIN = re.compile(r"\d+(?: [+-] \d+)+")


@pytest.fixture(scope="module")
def drawn():
    """(puzzle, language) of each kind in each language, 400 of them, half held out."""
    rng = np.random.default_rng(0)
    sorts = list(product(KINDS, bilingual.LANGUAGES, (False, True))) * 50
    return [(draw_puzzle(rng, kind, held_out=held), language) for kind, language, held in sorts]


def test_a_sum_reads_as_expected():
    """Oracle: by hand."""
    puzzle = Puzzle("sum", (7, 5, 3), (1, -1))
    assert (puzzle.question("en"), puzzle.question("zh")) == (
        "What is 7 + 5 - 3?",
        "7 + 5 - 3等于多少？",
    )
    assert (puzzle.answer, puzzle.value, puzzle.problem) == ("9", 9, "sum 7 + 5 - 3")
    assert puzzles.solution(puzzle, "en") == (
        "<think>first 7 + 5 = 12, then 12 - 3 = 9</think><answer>9</answer>"
    )
    assert puzzles.write_steps(puzzle.steps(), ["zh", "en"]) == "先7 + 5 = 12, then 12 - 3 = 9"


def test_a_countdown_reads_as_expected():
    """Oracle: by hand; the search goes through ++ and +- before it finds -+."""
    puzzle = Puzzle("countdown", (9, 4, 2), (-1, 1))
    assert (puzzle.question("en"), puzzle.question("zh")) == (
        "Make 7 of 9, 4, 2.",
        "凑出7，用9, 4, 2。",
    )
    assert (puzzle.answer, puzzle.value) == ("9 - 4 + 2", 7)
    assert puzzles.solution(puzzle, "zh") == (
        "<think>先9 + 4 = 13，再13 + 2 = 15错，再13 - 2 = 11错，改9 - 4 = 5，再5 + 2 = 7对</think>"
        "<answer>9 - 4 + 2</answer>"
    )


def test_every_answer_is_the_only_one_that_solves_the_question_as_it_is_written(drawn):
    """Oracle: the question's text: its chain by eval; for a countdown all signs, by eval."""
    for puzzle, language in drawn:
        question = puzzle.question(language)
        if puzzle.kind == "sum":
            assert str(eval(CHAIN.search(question)[0])) == puzzle.answer
        else:
            target, *numbers = re.findall(r"\d+", question)
            chains = (
                f"{numbers[0]}{a}{numbers[1]}{b}{numbers[2]}"
                for a, b in product((" + ", " - "), repeat=2)
            )
            assert [c for c in chains if eval(c) == int(target)] == [puzzle.answer]


def test_every_step_of_a_solution_is_true_and_ends_in_the_answer(drawn):
    """Oracle: eval of every step and of the answer; numbers within the vocabulary."""
    for puzzle, language in drawn:
        text = puzzles.solution(puzzle, language)
        steps = STEP.findall(text)
        assert len(steps) == len(puzzle.steps()) >= 2
        assert all(eval(left) == int(right) for left, right in steps)
        assert int(steps[-1][1]) == eval(puzzle.answer) == puzzle.value
        assert max(map(int, re.findall(r"\d+", text))) <= bilingual.LARGEST_NUMBER
        assert "- -" not in text and "= -" not in text


def test_a_solution_earns_every_reward(drawn):
    """Oracle: the rewards, which read text alone."""
    for puzzle, language in drawn:
        example = {"answer": puzzle.answer, "language": language}
        text = puzzles.solution(puzzle, language)
        assert puzzle_answer(text, example) == think_answer_format(text, example) == 1.0
        assert language_consistency(text, example) == 1.0


def test_a_working_that_changes_its_language_half_way_is_half_consistent():
    """Oracle: by hand: one English word and one Chinese character."""
    puzzle = Puzzle("sum", (7, 5, 3), (1, -1))
    text = puzzles.tagged(puzzles.write_steps(puzzle.steps(), ["en", "zh"]), "9")
    for language in bilingual.LANGUAGES:
        assert language_consistency(text, {"language": language}) == 0.5


def test_the_four_ends_of_a_countdown_are_equally_often_right():
    """Oracle: 4 binomial standard deviations around a quarter of 2,000 draws."""
    rng = np.random.default_rng(1)
    signs = Counter(draw_puzzle(rng, "countdown").signs for _ in range(2000))
    assert len(signs) == 4
    assert all(abs(n - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5 for n in signs.values())


def test_what_is_drawn_is_held_out_or_not_as_asked_in_both_languages(drawn):
    """Oracle: bilingual.held_out, and the sets of problems."""
    sides = {True: set(), False: set()}
    for puzzle, _ in drawn:
        sides[bilingual.held_out(puzzle.problem)].add(puzzle.problem)
    assert not sides[True] & sides[False]
    assert min(map(len, sides.values())) > 100


def test_held_out_is_the_same_on_every_machine_for_a_fifth_of_the_countdowns():
    """Oracle: a few problems as once recorded; 20% within 5 standard deviations."""
    signs = list(product((1, -1), repeat=2))
    every = [
        Puzzle("countdown", (a, b, c), s)
        for a in puzzles.COUNTDOWN_FIRST
        for b, c in product(range(1, 10), repeat=2)
        for s in signs
    ]
    problems = [p.problem for p in every if puzzles.is_puzzle(p)]
    assert len(set(problems)) == len(problems) > 2000
    share = np.mean([bilingual.held_out(p) for p in problems])
    assert abs(share - 0.2) < 5 * (0.2 * 0.8 / len(problems)) ** 0.5
    kept = [p for p in problems if bilingual.held_out(p)]
    assert kept[:3] == ["countdown 8 (5, 1, 2)", "countdown 4 (5, 1, 2)", "countdown 9 (5, 1, 3)"]


def test_the_facts_hold_every_step_that_a_puzzle_needs(drawn):
    """Oracle: the steps of the puzzles."""
    facts = set(puzzles.all_facts())
    assert {s[1:4] for puzzle, _ in drawn for s in puzzle.steps()} <= facts
    assert all(0 <= a + sign * b <= bilingual.LARGEST_NUMBER for a, sign, b in facts)
    assert all(eval(puzzles.write_fact(*fact).replace("=", "==")) for fact in facts)


def test_the_seed_alone_decides_the_puzzles():
    """Oracle: two generators of one seed, and another seed."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        return [draw_puzzle(rng, kind) for kind in KINDS * 20]

    assert draw(3) == draw(3) != draw(4)
