"""Arguments without a flag, and flags that are fields."""

import pytest
from absl import flags

from launch import common
from launch.arguments import fields_named, named

FIELDS = ["num_steps", "prompts_per_step", "optimizer.lr", "base.num_steps", "base.batch_size"]


@pytest.mark.parametrize(
    "given, expected",
    [
        (["configs/x.py"], ["--config=configs/x.py"]),
        (["x:seed=1", "--workdir=w"], ["--config=x:seed=1", "--workdir=w"]),
        (["--workdir", "w", "x", "y"], ["--workdir", "w", "--config=x", "y"]),
        (["--check", "x"], ["--check", "--config=x"]),
        (["--config=x", "y"], ["--config=x", "y"]),
        (["--config", "x"], ["--config", "x"]),
        (["--workdir=w"], ["--workdir=w"]),
        ([], []),
    ],
)
def test_the_first_argument_without_a_flag_is_the_experiment(given, expected):
    """Oracle: by hand; the value of a flag that takes one is none."""
    before = set(flags.FLAGS)
    common.define_config()
    common.define_run("runs/x")
    try:
        assert named(["train.py", *given], "config") == ["train.py", *expected]
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("num_steps", ["num_steps"]),
        ("steps", ["num_steps", "base.num_steps"]),
        ("optimizer.lr", ["optimizer.lr"]),
        ("lr", ["optimizer.lr"]),
        ("batch_size", ["prompts_per_step", "base.batch_size"]),
        ("base.steps", ["base.num_steps"]),
        ("step", []),
    ],
)
def test_a_name_means_fields_that_end_in_it_or_in_what_others_call_it(name, expected):
    """Oracle: by hand."""
    assert fields_named(name, FIELDS) == expected
