"""Arguments without a flag, and flags that are fields."""

import pytest
from absl import flags

from launch import common
from launch.arguments import fields_named, named, profiled_steps
from tests.in_process import launched

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
        assert named(["train.py", *given], ["config"]) == ["train.py", *expected]
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    "given, expected",
    [
        (["x", "y"], ["--config=x", "--workdir=y"]),
        (["x", "--check", "y", "z"], ["--config=x", "--check", "--workdir=y", "z"]),
        (["y", "--config=x"], ["--workdir=y", "--config=x"]),
        (["--workdir", "y", "x"], ["--workdir", "y", "--config=x"]),
    ],
)
def test_further_arguments_without_a_flag_have_the_further_names(given, expected):
    """Oracle: by hand; a name that is there as a flag is passed over."""
    before = set(flags.FLAGS)
    common.define_config()
    common.define_run("runs/x")
    try:
        assert named(["sweep.py", *given], ["config", "workdir"]) == ["sweep.py", *expected]
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


@pytest.mark.parametrize(
    "program, missing",
    [
        ("evaluate", "--checkpoint is missing (see --help); --data is missing (see --help)"),
        ("convert", "--from is missing (see --help); --to is missing (see --help)"),
        ("sweep", "--config is missing; give an experiment"),
    ],
)
def test_a_program_without_its_arguments_names_them(program, missing):
    """Oracle: by hand: one line, exit status 2."""
    status, _, err = launched(program)
    assert status == 2 and err.startswith(f"error: {missing}") and err.count("\n") == 1


def test_a_step_and_a_number_of_steps_are_read():
    """Oracle: by hand."""
    assert profiled_steps("100:3") == (100, 3)


@pytest.mark.parametrize("text", ["3", "0:0", "a:b", "-1:2", "1:2:3", "1:", ":2", "", "1_0:2"])
def test_what_is_no_step_and_number_is_refused(text):
    """Oracle: the flag, what was given and the form, in the message."""
    with pytest.raises(ValueError, match=f"--profile={text} is not STEP:COUNT, .*--profile=100:3"):
        profiled_steps(text)
