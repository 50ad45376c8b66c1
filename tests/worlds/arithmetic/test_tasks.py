"""Sums and differences to train on and to measure on, and their workings."""

import re
from collections import Counter

import pytest

from deepseek_jax.data.messages import parse_conversation, worked_conversations
from deepseek_jax.rewards.arithmetic import correct_reasoning, correct_working
from deepseek_jax.worlds.arithmetic import corpus as arithmetic
from deepseek_jax.worlds.arithmetic.tasks import (
    arithmetic_task,
    word_arithmetic_task,
    worked_example,
)
from deepseek_jax.worlds.registry import all_rules, find_questions

MARKS = (r"\boxed{%s}", "<answer>%s</answer>", "#### %s")


def test_arithmetic_answers_are_the_sums_of_the_question():
    """Oracle: the numbers of the question text, added."""
    task = arithmetic_task(seed=0)
    for example in task.train + task.held_out:
        numbers = [int(x) for x in re.findall(r"\d+", example["question"])]
        assert numbers == example["operands"]
        assert example["answer"] == str(sum(numbers))


@pytest.mark.parametrize("make", [arithmetic_task, word_arithmetic_task])
def test_held_out_operands_are_in_no_training_question(make):
    """Oracle: arithmetic.held_out, and the sets of operands and of questions."""
    task = make(seed=0)
    assert len(task.held_out) == 256 and len(task.train) > 1000
    assert all(arithmetic.held_out(x["operands"]) for x in task.held_out)
    assert not any(arithmetic.held_out(x["operands"]) for x in task.train)
    everything = [x["question"] for x in task.train + task.held_out]
    assert len(set(everything)) == len(everything)


def test_arithmetic_has_as_many_questions_of_three_operands_as_of_four():
    """Oracle: a count on both sides, an odd number of held-out questions included."""
    task = arithmetic_task(seed=0, num_held_out=101)
    assert len({*Counter(len(x["operands"]) for x in task.train).values()}) == 1
    assert Counter(len(x["operands"]) for x in task.held_out) == {3: 50, 4: 51}


@pytest.mark.parametrize("make", [arithmetic_task, word_arithmetic_task])
def test_the_seed_alone_decides_the_task(make):
    """Oracle: two tasks of one seed, and another seed."""
    assert make(seed=4) == make(seed=4) != make(seed=5)


def test_word_answers_fit_their_sentence():
    """Oracle: the sentence's own words decide between sum and difference."""
    task = word_arithmetic_task(seed=0)
    operations = Counter()
    for example in task.train + task.held_out:
        a, b = (int(x) for x in re.findall(r"\d+", example["question"]))
        minus = " - " in example["question"] or "gives" in example["question"]
        assert example["operands"] == [a, b]
        assert example["answer"] == str(a - b if minus else a + b)
        assert int(example["answer"]) > 0
        assert "{" not in example["question"]
        operations[minus] += 1
    assert min(operations.values()) > 200


@pytest.mark.parametrize("make", [arithmetic_task, word_arithmetic_task])
def test_more_held_out_questions_than_there_are_is_refused(make):
    """Oracle: the message names the setting."""
    with pytest.raises(ValueError, match="lower num_held_out"):
        make(seed=0, num_held_out=5000)


@pytest.mark.parametrize(
    "task, reward", [(arithmetic_task, correct_reasoning), (word_arithmetic_task, correct_working)]
)
def test_a_small_worlds_answers_are_right_workings(task, reward):
    """Oracle: the rewards' own strict graders, on every conversation."""
    conversations = worked_conversations(task(0, 20).train, worked_example)
    for conversation in conversations:
        question, answer = conversation["messages"]
        assert question == {"role": "user", "content": conversation["question"]}
        assert answer["role"] == "assistant" and reward(answer["content"], conversation) == 1.0
        assert parse_conversation("here", conversation).items() <= conversation.items()


@pytest.mark.parametrize("name", ["arithmetic", "word_arithmetic"])
def test_a_copied_sum_is_no_answer_and_the_worked_one_is(name):
    """Oracle: by hand: a sum's value is its answer, so a rule that goes by value would pay the copy."""
    _, questions = find_questions(name)
    score = all_rules()[questions.rule].score
    for example in questions.make(seed=0).held_out:
        sign = " + " if sum(example["operands"]) == int(example["answer"]) else " - "
        copied = sign.join(map(str, example["operands"]))
        assert not any(score(form % copied, example) for form in ("%s", *MARKS))
        assert score(questions.worked(example), example) == 1
        assert all(score(form % example["answer"], example) == 1 for form in MARKS)
