"""Training questions, held-out questions, and the stream of training questions."""

import json

import pytest

from deepseek_jax.data.tasks import QuestionStream, gsm8k_task


@pytest.fixture
def questions(tmp_path):
    """A jsonl file of ten questions, the first of them twice."""
    lines = [{"question": f"Is it {n}?", "answer": f"Yes.\n#### {n}"} for n in (*range(10), 0)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_gsm8k_splits_its_questions_by_seed_without_overlap(questions):
    """Oracle: the ten distinct questions of the file."""
    task = gsm8k_task(questions, num_held_out=3)
    assert len(task.held_out) == 3
    assert sorted(x["answer"] for x in task.train + task.held_out) == [str(n) for n in range(10)]
    assert task == gsm8k_task(questions, num_held_out=3)
    assert task != gsm8k_task(questions, num_held_out=3, seed=1)


def test_gsm8k_with_nothing_left_to_train_on_is_refused(questions):
    """Oracle: the message gives both numbers."""
    with pytest.raises(ValueError, match="^num_held_out=10 leaves nothing of 10"):
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
