"""Help with command lines: an argument without a flag, and what to write for an unknown flag."""

import difflib
from collections.abc import Sequence
from itertools import pairwise

from absl import flags
from ml_collections import ConfigDict

from deepseek_jax.recipes.experiment import find_recipe
from launch.config_file import load_config
from launch.fields import fields_of

# {another library's name of a field: names of the field here}
ALSO = {
    "lr": ("learning_rate",),
    "steps": ("num_steps",),
    "max_steps": ("num_steps",),
    "batch_size": ("prompts_per_step",),
    "bs": ("batch_size", "prompts_per_step"),
    "epochs": ("num_steps",),
    "num_generations": ("group_size",),
    "beta": ("kl_coef",),
    "epsilon": ("clip_eps",),
    "max_tokens": ("max_completion_length",),
    "max_new_tokens": ("max_completion_length",),
    "max_length": ("sequence_length",),
    "seq_len": ("sequence_length",),
    "wd": ("weight_decay",),
    "warmup": ("warmup_steps",),
}
# Names with values in another unit: a message must not repeat the value
OTHER_UNIT = ("epochs",)
# The most fields that a message proposes
MOST = 3


def named(argv: list[str], names: Sequence[str]) -> list[str]:
    """Return a command line in which arguments without a flag have the flags of these names.

    The first of them gets the first name that the command line does not have as a flag, and so on.
    Further arguments stay as they are.
    """
    has = {argument.lstrip("-").partition("=")[0] for argument in argv[1:]}
    waiting, with_names = [name for name in names if name not in has], argv[:1]
    for before, argument in pairwise(argv):
        if waiting and not argument.startswith("-") and not _takes_next(before):
            argument = f"--{waiting.pop(0)}={argument}"
        with_names.append(argument)
    return with_names


def profiled_steps(text: str) -> tuple[int, int]:
    """Read --profile=STEP:COUNT: the first step to trace, and the number of steps.

    Raises:
        ValueError: The text has another form.
    """
    first, _, count = text.partition(":")
    # isdecimal: int() takes spaces, signs and underscores too
    if not (first.isdecimal() and count.isdecimal() and int(count)):
        raise ValueError(
            f"--profile={text} is not STEP:COUNT, a step from 0 and a number of steps from 1; for "
            "example, --profile=100:3 traces steps 100, 101 and 102"
        )
    return int(first), int(count)


def _takes_next(argument):
    """Return whether the next argument is the value of this one, as in --workdir FOLDER."""
    if not argument.startswith("-") or "=" in argument:
        return False
    name = argument.lstrip("-")
    return name not in flags.FLAGS or not flags.FLAGS[name].boolean


def instead(error: flags.Error, argv: list[str]) -> str | None:
    """Return what to write in place of an unknown flag that means a field of --config.

    The flag may have the field's name, nearly that name, or the name that another library uses for
    it (ALSO).

    Returns:
        The message; None for another error, without --config=, or if no field is like the flag.
    """
    config_flag = next((arg for arg in argv if arg.startswith(("--config=", "-config="))), None)
    if not isinstance(error, flags.UnrecognizedFlagError) or config_flag is None:
        return None
    name = error.flagname
    try:
        config = load_config(config_flag.partition("=")[2])
        matches = fields_named(name, _leaves(config))
        # If absl proposes a flag that is near, propose no field that is only near
        if not matches and "Did you mean" not in str(error):
            # Also the fields that the file leaves at their defaults. This imports jax
            settings = find_recipe(config.get("recipe")).SETTINGS
            defaults = [field.name for field in fields_of(settings) if not field.is_block]
            fields = [*_leaves(config), *defaults]
            matches = fields_named(name, fields) or _near(name, fields)
    # The config has a mistake too, but the flag is the first mistake
    except ValueError:
        return None
    if not matches:
        return None
    value = error.flagvalue.partition("=")[2]
    value_text = "VALUE" if not value or name in OTHER_UNIT else value
    suggestions = " or ".join(f"--config.{field}={value_text}" for field in matches[:MOST])
    return f"{error.flagvalue} is not a flag; a field of the experiment is set by {suggestions}"


def fields_named(name: str, fields: list[str]) -> list[str]:
    """Return the dotted fields that a name means, fields at the top first.

    If a field has exactly this name, it is the only one. Otherwise they are the fields that end in
    the name, or in a name that ALSO has for it.
    """
    if name in fields:
        return [name]
    *blocks, last_name = name.split(".")
    endings = tuple(
        "." + ".".join([*blocks, synonym]) for synonym in (last_name, *ALSO.get(last_name, ()))
    )
    return _from_the_top(field for field in fields if f".{field}".endswith(endings))


def _near(name, fields):
    """Return the fields with the last part that is nearest to a name's last part."""
    last_parts = {field.rpartition(".")[2] for field in fields}
    near_parts = difflib.get_close_matches(name.rpartition(".")[2], last_parts, n=1, cutoff=0.8)
    return _from_the_top(field for field in fields if field.rpartition(".")[2] in near_parts)


def _from_the_top(fields):
    return sorted(dict.fromkeys(fields), key=lambda field: field.count("."))


def _leaves(block, path=""):
    """Return the dotted name of every field; for a block, the names of its fields."""
    fields: list[str] = []
    for name, value in block.items():
        is_block = isinstance(value, ConfigDict) and len(value)
        fields += _leaves(value, f"{path}{name}.") if is_block else [f"{path}{name}"]
    return fields
