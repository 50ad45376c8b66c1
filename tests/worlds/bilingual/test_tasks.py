"""Questions of the bilingual world to train on and to measure on."""

from collections import Counter

import pytest

from deepseek_jax.rewards import Rewards
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.puzzle_rewards import puzzle_answer
from deepseek_jax.worlds.bilingual.request_rewards import helpfulness
from deepseek_jax.worlds.bilingual.tasks import (
    bilingual_puzzle_task,
    bilingual_request_task,
    puzzle_examples,
    request_examples,
)
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer

MAKE = [bilingual_puzzle_task, bilingual_request_task]


@pytest.fixture(scope="module", params=MAKE, ids=["puzzles", "requests"])
def task(request):
    return request.param(seed=0)


def test_no_problem_is_on_both_sides_in_whatever_language(task):
    """Oracle: bilingual.held_out, and the sets of problems and of questions."""
    assert len(task.held_out) == 256 and len(task.train) >= 2048
    assert all(bilingual.held_out(x["problem"]) for x in task.held_out)
    assert not any(bilingual.held_out(x["problem"]) for x in task.train)
    everything = [x["question"] for x in task.train + task.held_out]
    assert len(set(everything)) == len(everything)


def test_half_of_the_questions_are_in_each_language(task):
    """Oracle: a count; the script of the question, for puzzles by construction equal."""
    for examples in (task.train, task.held_out):
        counts = Counter(x["language"] for x in examples)
        assert abs(counts["en"] - counts["zh"]) < 5 * len(examples) ** 0.5
        for x in examples:
            assert ("\u4e00" <= max(x["question"][:3] + x["question"][-3:])) == (
                x["language"] == "zh"
            )


def test_every_solution_earns_everything(task):
    """Oracle: the rewards of tags and language as a run scores them, and the rule of the kind."""
    examples = task.train[:300] + task.held_out
    weights = dict(think_answer_format=1.0, language_consistency=1.0)
    with Rewards(weights) as rewards:
        scores = rewards.score(examples, [x["solution"] for x in examples])
    assert scores.errors == 0 and set(scores.total) == {2.0}
    for x in examples:
        right = puzzle_answer if x["kind"] in ("sum", "countdown") else helpfulness
        assert right(x["solution"], x) == 1.0


def test_every_text_fits_the_rollout_that_a_tiny_run_affords(task):
    """Oracle: the tokenizer; a prompt is the question and two pieces more."""
    tokenizer = bilingual_tokenizer()
    examples = task.train + task.held_out
    assert max(len(tokenizer.encode(x["question"])) for x in examples) <= 14
    lengths = [len(tokenizer.encode(x["solution"])) for x in examples]
    assert max(lengths) <= 56 and sum(lengths) / len(lengths) < 40


@pytest.mark.parametrize("make", MAKE)
def test_the_seed_alone_decides_the_task(make):
    """Oracle: two tasks of one seed, and another seed."""
    assert make(seed=4, num_held_out=64) == make(seed=4, num_held_out=64)
    assert make(seed=4, num_held_out=64) != make(seed=5, num_held_out=64)


def test_puzzles_are_equally_many_of_each_sort():
    """Oracle: a count, of a number that does not split evenly."""
    counts = Counter((x["kind"], x["language"]) for x in puzzle_examples(0, 101))
    assert sorted(counts.values()) == [25, 25, 25, 26]


def test_requests_are_those_few_that_there_are_and_as_many_of_the_others():
    """Oracle: a count once made, 17 of 64 lookups and 7 of 32 secrets; half of the rest each."""
    counts = Counter(x["kind"] for x in request_examples(0, 100, held_out=True))
    assert counts == {"lookup": 17, "secret": 7, "translate": 38, "reverse": 38}
    few = Counter(x["kind"] for x in request_examples(0, 20, held_out=True))
    assert few["lookup"] + few["secret"] == 10


@pytest.mark.parametrize("make", MAKE)
def test_more_held_out_questions_than_there_are_are_refused(make):
    """Oracle: the message names the setting."""
    with pytest.raises(ValueError, match="lower num_held_out"):
        make(seed=0, num_held_out=100_000)
