"""An argument without a flag, and what to write in place of a flag that is not there."""

import dataclasses
import difflib
import typing

from absl import flags
from ml_collections import ConfigDict

from deepseek_jax.recipes.experiment import find_recipe
from launch.config_file import load_config

# What other libraries call a field: its names here
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
# Names whose values are in another unit
OTHER_UNIT = ("epochs",)
# Fields that a message proposes
MOST = 3


def named(argv: list[str], flag: str) -> list[str]:
    """A command line whose first argument without a flag is the value of --FLAG, if it has no --FLAG."""
    if any(argument.lstrip("-").partition("=")[0] == flag for argument in argv[1:]):
        return argv
    for place in range(1, len(argv)):
        if not argv[place].startswith("-") and not _takes_next(argv[place - 1]):
            return [*argv[:place], f"--{flag}={argv[place]}", *argv[place + 1 :]]
    return argv


def _takes_next(argument):
    """Whether the next argument is the value of this one, as in --workdir FOLDER."""
    if not argument.startswith("-") or "=" in argument:
        return False
    name = argument.lstrip("-")
    return name not in flags.FLAGS or not flags.FLAGS[name].boolean


def instead(error: flags.Error, argv: list[str]) -> str | None:
    """What to write in place of a flag that is not there, where a field of --config has this name, nearly, or
    elsewhere; None for another error.
    """
    place = next((each for each in argv if each.startswith(("--config=", "-config="))), None)
    if not isinstance(error, flags.UnrecognizedFlagError) or place is None:
        return None
    name = error.flagname
    try:
        config = load_config(place.partition("=")[2])
        found = fields_named(name, _leaves(config))
        if not found:
            # Those that the file leaves at their defaults: this imports jax
            fields = [*_leaves(config), *_fields(find_recipe(config.get("recipe")).SETTINGS)]
            # absl knows the flags that are near
            near = [] if "Did you mean" in str(error) else _near(name, fields)
            found = fields_named(name, fields) or near
    # The flag is the first mistake
    except ValueError:
        return None
    if not found:
        return None
    value = error.flagvalue.partition("=")[2]
    text = "VALUE" if not value or name in OTHER_UNIT else value
    ways = " or ".join(f"--config.{field}={text}" for field in found[:MOST])
    return f"{error.flagvalue} is not a flag; a field of the experiment is set by {ways}"


def fields_named(name: str, fields: list[str]) -> list[str]:
    """The dotted fields that a name means, those at the top first: itself, or those that end in it or in what
    ALSO says.
    """
    if name in fields:
        return [name]
    *outer, last = name.split(".")
    ends = tuple("." + ".".join([*outer, each]) for each in (last, *ALSO.get(last, ())))
    return _from_the_top(field for field in fields if f".{field}".endswith(ends))


def _near(name, fields):
    """The fields whose last part is nearest to that of a name."""
    ends = {field.rpartition(".")[2] for field in fields}
    near = difflib.get_close_matches(name.rpartition(".")[2], ends, n=1, cutoff=0.8)
    return _from_the_top(field for field in fields if field.rpartition(".")[2] in near)


def _from_the_top(fields):
    return sorted(dict.fromkeys(fields), key=lambda field: field.count("."))


def _leaves(block, path=""):
    """[the dotted name of every field]; of a block those of its fields."""
    found = []
    for name, value in block.items():
        inner = isinstance(value, ConfigDict) and len(value)
        found += _leaves(value, f"{path}{name}.") if inner else [f"{path}{name}"]
    return found


def _fields(settings, path=""):
    """[the dotted name of every field] of a dataclass of settings, and of those that its fields hold."""
    found = []
    for name, hint in typing.get_type_hints(settings).items():
        inner = [each for each in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(each)]
        found += _fields(inner[0], f"{path}{name}.") if inner else [f"{path}{name}"]
    return found
