"""The time left of a whole run, from stages that took a known time."""

import pytest

from deepseek_jax.recipes.kinds.measure import Measure
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.recipes.time_left import TimeLeft
from deepseek_jax.settings import build
from deepseek_jax.training.settings import LoopSettings


class Sharpen(Stage):
    """A stage that trains."""


class Weigh(Stage):
    """Another kind of stage that trains."""


class Count(Measure):
    """A stage that measures."""


def training(kind, name, num_steps):
    optimizer = dict(learning_rate=1e-3)
    return kind(name, build(LoopSettings, dict(num_steps=num_steps, optimizer=optimizer), name))


@pytest.fixture
def stages():
    """Two kinds that train, and a measurement after each of three stages of training."""
    trained = [training(Sharpen, "a", 10), training(Sharpen, "b", 25), training(Weigh, "c", 5)]
    return [s for stage in trained for s in (stage, Count(f"{stage.name}_measured", {}))]


def test_a_kind_is_estimated_by_its_steps_and_a_measurement_by_its_number(stages):
    """Oracle: by hand. 20 s for 10 steps are 50 s for 25; a measurement of 4 s comes three times; after 10
    steps in 20 s and 25 in 15 s one takes a second; and 12 s for 5 steps are 12 s again.
    """
    left = TimeLeft()
    assert left.text(stages) == ""
    left.add(stages[0], 20.0)
    assert left.text(stages[1:]) == "at least 50 s left"
    left.add(stages[1], 4.0)
    assert left.text(stages[2:]) == "at least 58 s left"
    left.add(stages[2], 15.0)
    left.add(stages[3], 6.0)
    assert left.text([stages[2], stages[3]]) == "about 30 s left"
    left.add(stages[4], 12.0)
    assert left.text(stages[4:]) == "about 17 s left"


def test_nothing_is_said_where_only_measurements_are_known(stages):
    """Oracle: by hand: the training of "c" is of a kind without a time; after it a measurement is left."""
    left = TimeLeft()
    left.add(stages[1], 4.0)
    assert left.text(stages[4:]) == left.text(stages[5:]) == left.text([]) == ""
