"""What the files of configs/sweeps build their lists of overrides from, and that their runs are configs."""

import math
import re

import pytest
from ml_collections import ConfigDict

from configs.sweeps import learning_rates
from configs.sweeps.draws import choice, draw, grid, log_uniform, uniform
from deepseek_jax.recipes.experiment_file import load_function
from launch.config_file import load_config
from launch.sweeps.runs import sweep_runs
from tests.experiments import CONFIGS, SETTINGS

SWEEPS = sorted(path for path in (CONFIGS / "sweeps").glob("*.py") if path.stem != "draws")


def test_a_grid_is_every_combination_the_last_field_the_fastest():
    """Oracle: by hand."""
    expected = [
        {"a.b": 1, "seed": 0},
        {"a.b": 1, "seed": 1},
        {"a.b": 2, "seed": 0},
        {"a.b": 2, "seed": 1},
    ]
    assert grid({"a.b": [1, 2], "seed": range(2)}) == expected


def test_a_seed_repeats_its_draws_and_a_longer_sweep_begins_with_them():
    """Oracle: the same call, another seed, and another count."""
    fields = {"a": uniform(0, 1), "b": log_uniform(1e-5, 1e-1), "c": choice(["x", "y"])}
    first = draw(8, fields)
    assert draw(8, fields) == first and draw(12, fields)[:8] == first
    assert draw(8, fields, seed=1) != first
    assert {one["c"] for one in first} == {"x", "y"}


def test_draws_are_in_their_range_and_log_uniform_ones_even_over_decades():
    """Oracle: a share of half on each side of the middle, within 4 standard errors of 4000 draws (0.032)."""
    drawn = draw(4000, {"a": uniform(2, 4), "b": log_uniform(1e-5, 1e-1)})
    for name, low, middle, high in (("a", 2, 3, 4), ("b", 1e-5, 1e-3, 1e-1)):
        values = [one[name] for one in drawn]
        assert low <= min(values) and max(values) <= high
        assert sum(value < middle for value in values) / 4000 == pytest.approx(0.5, abs=0.032)
        assert all(value == float(f"{value:.3g}") for value in values)


def test_mistakes_name_what_is_wrong():
    """Oracle: the words a reader needs."""
    for make, words in (
        (lambda: log_uniform(0, 1), "log_uniform: low=0 must be above 0"),
        (lambda: uniform(1, 1), "from low=1 to high=1: low must be below high"),
        (lambda: log_uniform(math.e, 1), "low must be below high"),
        (lambda: draw(0, {}), "count=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_the_learning_rates_of_a_config():
    """Oracle: by hand: a third of the config's rate, and the rate, with three seeds each."""
    config = ConfigDict(dict(optimizer=dict(learning_rate=3e-4)))
    runs = learning_rates.sweep(config)
    assert [run["optimizer.learning_rate"] for run in runs] == [1e-4] * 3 + [3e-4] * 3
    assert [run["seed"] for run in runs] == [0, 1, 2] * 2


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_runs_of_a_sweep_are_configs_of_their_recipe(path):
    """Oracle: the recipe's settings, for the config that the sweep's own command names."""
    name, own = re.search(r"--config=configs/(\S+) --sweep=(\S+)", path.read_text()).groups()
    assert own == f"configs/sweeps/{path.name}"
    config = load_config(str(CONFIGS / name))
    overrides = load_function(str(path), "sweep", "--sweep")(config)
    assert len(sweep_runs(config, overrides, SETTINGS[config.recipe])) == len(overrides) > 1
