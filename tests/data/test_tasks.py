"""Questions to train on and questions to measure on, and the stream of the first."""

import json
import re
from collections import Counter

import pytest

from deepseek_jax.data.tasks import (
    QuestionStream,
    arithmetic_task,
    gsm8k_task,
    word_arithmetic_task,
)
from deepseek_jax.worlds.arithmetic import corpus as arithmetic


@pytest.fixture
def questions(tmp_path):
    """A jsonl file of ten questions, the first of them twice."""
    lines = [{"question": f"Is it {n}?", "answer": f"Yes.\n#### {n}"} for n in (*range(10), 0)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


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
    with pytest.raises(ValueError, match="lower config.data.num_held_out"):
        make(seed=0, num_held_out=5000)


def test_gsm8k_splits_its_questions_by_seed_without_overlap(questions):
    """Oracle: the ten distinct questions of the file."""
    task = gsm8k_task(questions, num_held_out=3)
    assert len(task.held_out) == 3
    assert sorted(x["answer"] for x in task.train + task.held_out) == [str(n) for n in range(10)]
    assert task == gsm8k_task(questions, num_held_out=3)
    assert task != gsm8k_task(questions, num_held_out=3, seed=1)


def test_gsm8k_with_nothing_left_to_train_on_is_refused(questions):
    """Oracle: the message gives both numbers."""
    with pytest.raises(ValueError, match="^num_held_out=10 leaves nothing of the 10"):
        gsm8k_task(questions, num_held_out=10)


def test_stream_gives_each_example_once_an_epoch_in_a_new_order():
    """Oracle: a count of every epoch; takes that cross an epoch's end."""
    examples = [{"question": str(n)} for n in range(10)]
    stream = QuestionStream(examples, seed=0)
    taken = sum((stream.take(4) for _ in range(10)), [])
    epochs = [[x["question"] for x in taken[i : i + 10]] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == [str(n) for n in range(10)] for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_stream_resumes_from_its_position():
    """Oracle: the uninterrupted stream."""
    examples = [{"question": str(n)} for n in range(7)]
    stream = QuestionStream(examples, seed=3)
    stream.take(10)
    resumed = QuestionStream(examples, seed=3)
    resumed.position = json.loads(json.dumps(stream.position))
    assert resumed.take(12) == stream.take(12)


def test_stream_of_nothing_is_refused():
    """Oracle: the message."""
    with pytest.raises(ValueError, match="no questions"):
        QuestionStream([], seed=0)
