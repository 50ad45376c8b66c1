"""The runs of a sweep: names, configs, command lines, and mistakes in the overrides."""

import dataclasses
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.sweeps.seeds import sweep as seeds
from launch.sweeps.runs import file_name, sweep_runs, train_arguments


@dataclasses.dataclass(frozen=True)
class Zero:
    num_steps: int
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class Small:
    """The settings of a small config."""

    recipe: str = "r1"
    seed: int = 0
    zero: Zero | None = None


def test_three_seeds_of_a_config():
    """Oracle: by hand: the config with another seed, and the given one as it was."""
    config = ConfigDict(dict(recipe="r1", seed=7, zero=dict(num_steps=3)))
    runs = sweep_runs(config, seeds(config), Small)
    assert [run.name for run in runs] == ["seed=0", "seed=1", "seed=2"]
    assert [run.config for run in runs] == [
        json.loads(config.to_json()) | {"seed": s} for s in range(3)
    ]
    (run,) = sweep_runs(config, [{"zero.num_steps": 5, "zero.temperature": 0.5}], Small)
    assert run.config["zero"] == {"num_steps": 5, "temperature": 0.5}
    assert config.zero == ConfigDict(dict(num_steps=3))


def test_mistakes_name_what_is_wrong():
    """Oracle: the words a reader needs."""
    config = ConfigDict(dict(seed=7))
    for overrides, words in (
        ([{"sed": 1}], "--sweep: sed=1: config.sed is not a field; did you mean seed"),
        ([{"seed": "one"}], r"--sweep: seed=one: config.seed='one' \(str\) must be an int"),
        ([{"seed": 1}, {"seed": 1}], "overrides of its own"),
        ([{}], "overrides of its own"),
        ([], "names no runs"),
    ):
        with pytest.raises(ValueError, match=words):
            sweep_runs(config, overrides, Small)


def test_the_command_of_a_run():
    """Oracle: by hand: the sweep's arguments, then the run's own."""
    config = ConfigDict(dict(seed=7))
    (run,) = sweep_runs(config, [{"zero.num_steps": 5}], Small)
    assert train_arguments(run, Path("out"), ["--config=a.py", "--config.seed=7"]) == [
        *("--config=a.py", "--config.seed=7", "--config.zero.num_steps=5"),
        "--workdir=out/zero.num_steps=5",
    ]


def test_long_names_are_cut_and_stay_apart():
    """Oracle: the 255 characters of a file's name, less those of the longest ending."""
    names = {file_name("x" * 300 + end) for end in "ab"}
    assert len(names) == 2 and all(len(name) < 255 - len(".status.1.tmp") for name in names)
    assert file_name("a/b=1") == "a_b=1"
