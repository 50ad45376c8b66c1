"""train --fields: what it lists is what the settings classes check."""

import pytest
from ml_collections import ConfigDict

from deepseek_jax.recipes.experiment import find_recipe, recipe_modules
from deepseek_jax.settings import CountBySteps, Share, Weights
from deepseek_jax.training.optimizer import Decay
from launch.fields import ANY_NAME, Field, Mark, fields_of, shown, split_arguments, type_text
from tests.experiments import CONFIGS, RUNS, SETTINGS, load
from tests.in_process import launched


def rows(text):
    """{field: the rest of its line} of what --fields prints."""
    _, _, *lines = text.splitlines()
    return {name: rest.strip() for name, _, rest in (line.strip().partition(" ") for line in lines)}


def leaves(block, path=""):
    """The dotted name of each field that a config's file sets, and its value."""
    for name, value in block.items():
        is_block = isinstance(value, (ConfigDict, dict)) and len(value)
        yield from leaves(value, f"{path}{name}.") if is_block else [(f"{path}{name}", value)]


@pytest.mark.parametrize("recipe", SETTINGS)
def test_every_field_has_a_type_and_a_meaning_and_stands_once(recipe):
    """Oracle: a docstring that leaves a field out gives no meaning; names of a list are unique."""
    fields = list(fields_of(SETTINGS[recipe]))
    assert [field.name for field in fields if not (field.type and field.meaning)] == []
    assert len({field.name for field in fields}) == len(fields) > 30
    assert [f.name for f in fields if "\n" in f.meaning] == []


def test_every_field_that_a_shipped_experiment_sets_is_listed_with_its_value():
    """Oracle: the ConfigDicts of all experiments. Names that users choose (rewards) are one value."""
    checked = 0
    for path, arg in RUNS:
        config = load(path, arg)
        listed = rows(shown("", config))
        for name, value in leaves(config):
            if name not in listed:
                block = name.rpartition(".")[0]
                while block not in listed:
                    block = block.rpartition(".")[0]
                assert "NAME: " in listed[block] or "list of " in listed[block], (path.name, name)
            elif isinstance(value, (str, bool)):
                assert listed[name].startswith(repr(value)), (path.name, name)
                checked += 1
            elif isinstance(value, (int, float)):
                # An int may stand for a float
                assert float(listed[name].split()[0]) == value, (path.name, name)
                checked += 1
    assert checked > 1000


def test_defaults_types_and_blocks_by_hand():
    """Oracle: by hand, from GrpoSettings and the classes of its blocks."""
    fields = {field.name: field for field in fields_of(find_recipe("grpo").SETTINGS)}
    meaning = "Updates in a row with gradients that are not finite"
    assert fields["faults.nonfinite"] == Field("faults.nonfinite", "int at least 1", 3, meaning)
    assert fields["num_steps"].value is Mark.REQUIRED
    assert fields["save_every"].value == 20
    assert (fields["base"].value, fields["faults"].value) == (None, Mark.BELOW)
    assert fields["base"].is_block and fields["base.optimizer.b2"].type.endswith(
        "at least 0 and below 1"
    )
    assert fields[f"reward_models.{ANY_NAME}.batch_size"].value == 64
    assert fields["optimizer.phases"].value == ()
    assert fields["optimizer.phases[].kind"].type == "'linear' or 'constant' or 'cosine'"
    assert fields["model.vocab_size"].value is Mark.REQUIRED
    assert fields["mesh.data"].value == -1
    # A field that has none in GrpoSettings has that of the base class
    assert fields["init_from"].meaning.startswith("The checkpoint: the folder of a run")


@pytest.mark.parametrize(
    "hint, text",
    [
        (Share | None, "float within 0..1 or None"),
        (CountBySteps, "int at least 1 or list of (int at least 0, int at least 1)"),
        (Weights, "NAME: int or float"),
        (Decay, "float at least 0 and below 1"),
        (dict, "block"),
    ],
)
def test_a_type_is_said_in_words(hint, text):
    """Oracle: by hand."""
    assert type_text(hint) == text


@pytest.mark.parametrize(
    "given, expected",
    [
        (["--fields"], ([], "")),
        (["--fields", "grpo"], ([], "grpo")),
        (["--fields=grpo"], ([], "grpo")),
        (["--fields", "grpo_small"], (["grpo_small"], "")),
        (["r1_small", "--fields"], (["r1_small"], "")),
        (["--config=r1", "--fields", "--config.seed=1"], (["--config=r1", "--config.seed=1"], "")),
        (["--fields=grop"], ([], "grop")),
        (["grpo_small"], (["grpo_small"], None)),
    ],
)
def test_a_name_after_the_flag_is_a_recipe_if_there_is_one(given, expected):
    """Oracle: by hand."""
    assert split_arguments(given) == expected


def test_the_program_lists_recipes_and_a_recipes_fields_and_an_experiments():
    """Oracle: by hand: status 0, the recipes, a default, an override and a value of the file."""
    status, out, err = launched("train", "--fields")
    assert (status, err) == (0, "") and list(rows(out)) == sorted(recipe_modules())
    status, out, _ = launched("train", "--fields", "sft")
    assert status == 0 and rows(out)["checkpoints.keep"].startswith("2 ")
    status, out, _ = launched("train", "grpo_small", "--fields", "--config.seed=7")
    table = rows(out)
    assert status == 0 and table["seed"].startswith("7 ") and table["recipe"].startswith("'grpo'")
    assert table["group_size"].startswith(f"{load(CONFIGS / 'grpo_small.py').group_size} ")


@pytest.mark.parametrize(
    "given, words",
    [
        (["--fields=grop"], "--fields=grop is not a recipe"),
        (["--fields", "grop"], "--config=grop is neither the path of a Python file nor a name"),
        (["grpo_small", "--fields", "--config.seed=-1"], "config.seed=-1 must be at least 0"),
    ],
)
def test_a_mistake_is_one_message(given, words):
    """Oracle: by hand: exit status 2."""
    status, _, err = launched("train", *given)
    assert status == 2 and err.startswith("error: ") and words in err
