"""A user's own task: a function in a file, which a worker process calls."""

import pytest

from deepseek_jax.worlds.own import own_questions

GOOD = """
def make(seed, num_held_out):
    examples = [{"question": f"{seed} + {i}?", "answer": str(seed + i)} for i in range(5)]
    return examples[num_held_out:], examples[:num_held_out]
"""


def task_of(folder, code, num_held_out=2):
    path = folder / "mine.py"
    path.write_text(code)
    return own_questions(f"{path}:make").make(7, num_held_out)


def test_a_function_makes_both_lists_from_its_arguments(tmp_path):
    """Oracle: by hand: five sums of the seed, of which the first two are held out."""
    task = task_of(tmp_path, GOOD)
    assert [e["question"] for e in task.held_out] == ["7 + 0?", "7 + 1?"]
    assert [e["answer"] for e in task.train] == ["9", "10", "11"]


@pytest.mark.parametrize(
    "result, wrong",
    [
        ("[{'question': '1?', 'answer': '1'}]", "return .training examples, held-out examples"),
        ("([], [], [])", "return .training examples, held-out examples"),
        ("['1?'], ['2?']", "training example 0 is no dict"),
        ("[{'question': '1?', 'answer': '1'}], []", "gives 1 training and 0 held-out examples"),
        ("1 / 0", "mine.py:make': .*division by zero"),
        ("__import__('os')._exit(1)", "ended its process"),
    ],
)
def test_what_is_no_task_is_refused(tmp_path, result, wrong):
    """Oracle: the words that a reader needs."""
    with pytest.raises(ValueError, match=wrong):
        task_of(tmp_path, f"def make(seed, num_held_out):\n    return {result}\n")
