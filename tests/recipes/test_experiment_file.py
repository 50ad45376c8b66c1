"""ds.config: an experiment by its name, with other values of its fields."""

import sys

import pytest

import deepseek_jax as ds
from deepseek_jax import named_code
from launch.config_file import load_config
from tests.rewards import own_rewards


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory that has no configs."""
    monkeypatch.setattr(named_code, "_beside", [])
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["grpo_small", "grpo_small:seed=1", "r1_small:quick"])
def test_a_shipped_experiment_is_that_of_the_command_line(name):
    """Oracle: --config with the same name."""
    assert ds.config(name) == load_config(name)


def test_fields_by_keyword_are_those_of_the_command_line():
    """Oracle: the same fields as flags; a dict of a block leaves the others there, one of rewards none."""
    flags = [("seed", "3"), ("data.num_held_out", "8"), ("base.optimizer.kind", "adamw")]
    flags += [("base.num_steps", "5"), ("rewards", "{'correct': 0.5, 'my.py:f': 1.0}")]
    found = ds.config(
        "grpo_small",
        seed=3,
        data={"num_held_out": 8},
        base={"optimizer": {"kind": "adamw"}},
        rewards={"correct": 0.5, "my.py:f": 1.0},
        **{"base.num_steps": 5},
    )
    assert found == load_config("grpo_small", flags)
    assert found.data.task == "arithmetic" and "correct_reasoning" not in found.rewards


def test_a_function_among_the_fields_stands_for_its_name():
    """Oracle: by hand."""
    found = ds.config("grpo_small", rewards={own_rewards.brief: 1.0}, accuracy=own_rewards.right)
    assert found.rewards.to_dict() == {"tests.rewards.own_rewards:brief": 1.0}
    assert found.accuracy == "tests.rewards.own_rewards:right"


def test_a_file_of_ones_own_is_an_experiment_and_its_code_is_looked_for_beside_it(tmp_path):
    """Oracle: by hand."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my.py").write_text("def f(): pass")
    (folder / "own.py").write_text(
        "from configs.grpo_small import get_config as shipped\n"
        "def get_config(arg=None):\n    return shipped(arg)\n"
    )
    found = ds.config(folder / "own.py", num_steps=2)
    assert found == load_config("grpo_small", [("num_steps", "2")])
    ds.config(f"{folder}/own.py:seed=1")
    assert named_code.code_file("my.py:f") == folder / "my.py"


def test_configs_of_the_callers_own_project_stay_what_they_are(tmp_path, monkeypatch):
    """Oracle: the module and the path of before."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("MINE = True")
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    import configs

    before = [*sys.path]
    assert configs.MINE and ds.config("grpo_small").recipe == "grpo"
    assert sys.modules["configs"] is configs and "configs.models" not in sys.modules
    # The folder of a config's file comes last, as it does for the programs
    assert sys.path[: len(before)] == before


@pytest.mark.parametrize(
    "name, fields, words",
    [
        (
            "grpo_smal",
            {},
            "name=grpo_smal is neither the path of a Python file nor a name; did you",
        ),
        (
            "nowhere.py",
            {},
            "name=nowhere.py: there is no such file; give the path of a Python file",
        ),
        ("grpo_small:sed=1", {}, "name: config argument 'sed=1': 'sed' is not a key; did you mean"),
        ("grpo_small", {"data": {"num_held": 1}}, "config.data.num_held is not a field; did"),
        ("grpo_small", {"seed.x": 1}, "config.seed.x: config.seed=0 is not a block with fields"),
        ("grpo_small", {"rewards": {len: 1.0}}, "'len' has no name in a file, by which worker"),
    ],
)
def test_an_unknown_name_or_field_is_one_line(name, fields, words):
    """Oracle: the message."""
    with pytest.raises(ValueError) as error:
        ds.config(name, **fields)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)
