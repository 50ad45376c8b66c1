"""Questions varied by rule, and their answers recomputed from the text."""

import re

import numpy as np
import pytest

from deepseek_jax.synthesis.vary import recomputed, vary_names, vary_numbers
from deepseek_jax.worlds.arithmetic import corpus as arithmetic
from deepseek_jax.worlds.arithmetic import tasks
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.puzzle_rewards import puzzle_answer
from deepseek_jax.worlds.bilingual.tasks import bilingual_puzzle_task, bilingual_request_task

PUZZLES = bilingual_puzzle_task(0, num_held_out=8).train[:200]
WORDS = tasks.word_arithmetic_task(0, num_held_out=8).train[::7]
SUMS = tasks.arithmetic_task(0, num_held_out=8).train[::9]
ADDING = ("+", "more", "together")  # in a question in words


def numbers(text):
    return [int(x) for x in re.findall(r"\d+", text)]


def plain_answer(question):
    """Python's arithmetic on the numbers of the text; a countdown's signs by an exhaustive loop."""
    found = numbers(question)
    if question.startswith(("Make ", "凑出")):
        target, a, b, c = found
        ways = {f"{a} {x} {b} {y} {c}" for x in "+-" for y in "+-"}
        (answer,) = [way for way in ways if eval(way) == target]  # noqa: S307
        return answer
    chain = re.search(r"\d+( [+-] \d+)+", question)
    if chain:
        return str(eval(chain[0]))  # noqa: S307
    a, b = found
    return str(a + b if any(word in question for word in ADDING) else a - b)


@pytest.mark.parametrize("examples", [PUZZLES, WORDS, SUMS], ids=["puzzles", "words", "sums"])
def test_other_numbers_come_with_their_answer(examples):
    """Oracle: plain_answer; the words, taken by deleting digits and signs, stay as they were."""
    for index, example in enumerate(examples):
        variant = vary_numbers(np.random.default_rng(index), example)
        assert variant["answer"] == plain_answer(variant["question"])
        assert recomputed(variant["question"]) == variant["answer"]
        words = [re.sub(r"[\d+-]+", "", e["question"]) for e in (example, variant)]
        assert words[0] == words[1]
        assert len(numbers(example["question"])) == len(numbers(variant["question"]))


def test_what_a_small_world_holds_out_stays_held_out():
    """Oracle: the worlds' own rules."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        assert not bilingual.held_out(vary_numbers(rng, PUZZLES[seed])["problem"])
        assert not arithmetic.held_out(vary_numbers(rng, WORDS[seed])["operands"])
        assert not arithmetic.held_out(vary_numbers(rng, SUMS[seed])["operands"])


def test_a_varied_puzzles_solution_solves_it():
    """Oracle: the reward."""
    for index, example in enumerate(PUZZLES[:50]):
        variant = vary_numbers(np.random.default_rng(index), example)
        assert puzzle_answer(variant["solution"], variant) == 1
        assert puzzle_answer(f"<answer>{recomputed(variant['question'])}</answer>", variant) == 1


def test_other_names_leave_the_numbers_and_the_answer():
    """Oracle: by hand: no name and no thing of the question stands in the variant, and all else does."""
    named = 0
    for index, example in enumerate(WORDS):
        variant = vary_names(np.random.default_rng(index), example)
        if variant is None:
            assert example["question"].startswith("What is ")
            continue
        named += 1
        assert variant["answer"] == example["answer"] == plain_answer(variant["question"])
        assert numbers(variant["question"]) == numbers(example["question"])
        own = set(re.findall(r"\w+", example["question"])) & {*tasks.NAMES, *tasks.THINGS}
        assert own and not own & set(re.findall(r"\w+", variant["question"]))
    assert named > 100


@pytest.mark.parametrize(
    "question", ["Who sells 3 apples of 5?", "Say: 3 men", "Tom has 3 more and 2 left. How many?"]
)
def test_an_answer_that_cannot_be_read_from_the_text_is_none(question):
    """Oracle: by hand: no operation is named, a number lacks, two operations are named."""
    assert recomputed(question) is None


def test_questions_of_another_kind_are_refused():
    """Oracle: the message."""
    rng, request = np.random.default_rng(0), bilingual_request_task(0, num_held_out=8).train[0]
    with pytest.raises(ValueError, match="cannot be computed; supported are puzzles"):
        vary_numbers(rng, request)
    with pytest.raises(ValueError, match="sums and differences in words"):
        vary_names(rng, request)
