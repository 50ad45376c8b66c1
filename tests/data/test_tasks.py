"""Training questions and held-out questions."""

import json

import pytest

from deepseek_jax.data.tasks import file_task


@pytest.fixture
def questions(tmp_path):
    """A jsonl file of ten questions, the first of them twice."""
    lines = [{"question": f"Is it {n}?", "answer": f"Yes.\n#### {n}"} for n in (*range(10), 0)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_gsm8k_splits_its_questions_by_seed_without_overlap(questions):
    """Oracle: the ten distinct questions of the file."""
    task = file_task(questions, num_held_out=3)
    assert len(task.held_out) == 3
    assert sorted(x["answer"] for x in task.train + task.held_out) == [str(n) for n in range(10)]
    assert task == file_task(questions, num_held_out=3)
    assert task != file_task(questions, num_held_out=3, seed=1)


def test_gsm8k_with_nothing_left_to_train_on_is_refused(questions):
    """Oracle: the message gives both numbers."""
    with pytest.raises(ValueError, match="^num_held_out=10 leaves nothing of 10"):
        file_task(questions, num_held_out=10)
