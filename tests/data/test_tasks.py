"""Training questions and held-out questions."""

import json

import pytest

from deepseek_jax.data.tasks import Task, file_task, held_apart


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


def asked(*questions, **columns):
    return [{"question": question, "answer": "1"} | columns for question in questions]


def test_questions_that_are_held_out_leave_the_training_set(capsys):
    """Oracle: by hand: two of four, one of them with another column; where none is shared, the same task."""
    task = Task(asked("1?", "2?", "3?") + asked("4?", id=7), asked("2?", "4?", "5?"))
    assert held_apart(task) == Task(asked("1?", "3?"), task.held_out)
    said = "2 of 4 training questions are held out, too: left out of the training set"
    assert said in capsys.readouterr().out
    apart = Task(asked("1?"), asked("2?"))
    assert held_apart(apart) is apart and not capsys.readouterr().out


def test_a_task_whose_questions_are_all_held_out_is_refused():
    """Oracle: the message, with their number."""
    with pytest.raises(
        ValueError, match="^all 2 questions to train on are held out, too: accuracy"
    ):
        held_apart(Task(asked("1?", "2?"), asked("2?", "1?")))


def test_games_are_told_apart_by_their_columns():
    """Oracle: by hand: one text begins all games, of which one is in both."""
    games = [{"question": "Play.", "answer": "", "game": n} for n in range(4)]
    assert held_apart(Task(games[:3], games[2:]), plays=True).train == games[:2]
    with pytest.raises(ValueError, match="all 3 questions"):
        held_apart(Task(games[:3], games[2:]))
