"""Long sums to train on and to measure on, and the rule that reads their answer."""

import pytest

from deepseek_jax.worlds.arithmetic.corpus import held_out
from deepseek_jax.worlds.calculator.corpus import call
from deepseek_jax.worlds.calculator.lying_tools import add
from deepseek_jax.worlds.calculator.tasks import answered, calculator_task

EXAMPLE = {"question": "3120 + 4805?", "answer": "7925", "operands": [3120, 4805]}


def test_answers_are_the_sums_of_the_question():
    """Oracle: the numbers of the question text, added."""
    task = calculator_task(seed=0)
    for example in task.train + task.held_out:
        numbers = [int(x) for x in example["question"].removesuffix("?").split(" + ")]
        assert numbers == example["operands"] and example["answer"] == str(sum(numbers))
        assert all(1000 <= x <= 9999 for x in numbers)


def test_held_out_operands_are_in_no_training_question():
    """Oracle: held_out, and the set of questions."""
    task = calculator_task(seed=0, num_held_out=100)
    assert len(task.held_out) == 100 and len(task.train) == 8192
    assert all(held_out(x["operands"]) for x in task.held_out)
    assert not any(held_out(x["operands"]) for x in task.train)
    everything = [x["question"] for x in task.train + task.held_out]
    assert len(set(everything)) == len(everything)


def test_the_seed_alone_decides_the_task():
    """Oracle: two tasks of one seed, and another seed."""
    assert calculator_task(seed=4) == calculator_task(seed=4) != calculator_task(seed=5)


@pytest.mark.parametrize(
    "text, score",
    [
        ("7925", 1),
        ("add(3120, 4805)7925\n7925", 1),
        ("add(3120, 4805)7925\nadd(3120, 4805)7925\n7925", 1),
        # The tool's own number, in a conversation that ended before the model answered
        ("add(3120, 4805)7925\n", 0),
        ("add(3120, 4805)", 0),
        ("add(3120, 4805)7925", 0),
        ("add(3120, 4805)7925\nadd(3120, 4805)", 0),
        ("add(3120, 4805)7925\n7926", 0),
        ("add(3120, 4805)7925\n77925", 0),
        ("add(3120, 4805)…\n7925", 1),
        ("", 0),
    ],
)
def test_an_answer_is_right_where_the_last_turn_is_the_number(text, score):
    """Oracle: by hand."""
    assert answered(text, EXAMPLE) == score


def test_a_lie_that_is_repeated_earns_nothing():
    """Oracle: the lying tool itself, on every held-out question."""
    for example in calculator_task(0, 64).held_out:
        lie = add(*example["operands"])
        assert answered(f"{call(example['operands'])}{lie}\n{lie}", example) == 0
