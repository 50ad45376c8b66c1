"""The config of a command line: what FILE.py:ARG returns, with the fields that flags set.

A field is set by --config.FIELD=VALUE. FIELD is dotted, as loss.clip_eps_high. VALUE is written as in Python:
3, 1e-4, True, None, "['a.jsonl', 'b.jsonl']", "[[0, 1.0], [10, 0.7]]" or "{'fsdp': 4}"; a string by itself
needs no quotes. The file may lack the field, or have a value of another type there.
"""

import ast
import re

from ml_collections import ConfigDict

from deepseek_jax.recipes.experiment_file import block_of, read_config, set_field

OVERRIDE = re.compile(r"--?config\.([^=]*)(=?)(.*)", re.DOTALL)
BOOLS = {"true": True, "false": False}


def split_arguments(argv: list[str]):
    """Split the arguments of a command line: -> ([(dotted field, text)] of --config.FIELD=VALUE, the others).

    Raises ValueError for a field without a value.
    """
    overrides, others = [], []
    for argument in argv:
        match = OVERRIDE.fullmatch(argument)
        if match is None:
            others.append(argument)
            continue
        field, equals, text = match.groups()
        if not field or not equals:
            raise ValueError(f"{argument} has no value; write --config.{field or 'FIELD'}=VALUE")
        overrides.append((field, text))
    return overrides, others


def load_config(name: str, overrides=()):
    """The ConfigDict of FILE or FILE:ARG, see read_config, with overrides as of split_arguments.

    Raises ValueError as read_config does, and for an override that cannot be read or that a later one would
    replace.
    """
    config = read_config(name)
    # Overrides apply in order: a block given after one of its fields would replace that field
    for index, (field, text) in enumerate(overrides):
        inner = [name for name, _ in overrides[:index] if name.startswith(f"{field}.")]
        if inner:
            raise ValueError(f"--config.{field} would replace --config.{inner[0]}; give it first")
        _override(config, field, text)
    return config


def _override(config, field, text):
    block, name = block_of(config, field)
    kind = block.get_type(name) if name in block.keys() else type(None)
    set_field(config, field, _value(field, text, kind))


def _value(field, text, kind):
    """The value that an override's text stands for. kind: the type of the field's value; NoneType: any."""
    if text == "None":
        return None
    # A field with a text takes the text as it stands, even one that reads like a number
    if kind is str:
        return text
    if text.lower() in BOOLS:
        return BOOLS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError) as error:
        if kind is type(None):
            return text
        there = "block" if kind is ConfigDict else kind.__name__
        raise ValueError(
            f"--config.{field}={text} cannot be read as a value of type {there}; write it as in "
            "Python, with quotes around the strings of a list: 3, 1e-4, True, \"['a', 'b']\", \"{'a': 1}\""
        ) from error
