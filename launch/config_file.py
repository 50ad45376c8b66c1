"""The config of a command line: what FILE.py:ARG returns, with the fields that flags set.

--config.FIELD=VALUE sets a field. FIELD is dotted, as in loss.clip_eps_high. VALUE is written as in
Python: 3, 1e-4, True, None, "['a.jsonl', 'b.jsonl']", "[[0, 1.0], [10, 0.7]]" or "{'fsdp': 4}"; a
single string needs no quotes. The file may lack the field, or have a value of another type there.
"""

import ast
import re

from ml_collections import ConfigDict

from deepseek_jax.recipes.experiment_file import block_of, read_config, set_field

OVERRIDE = re.compile(r"--?config\.([^=]*)(=?)(.*)", re.DOTALL)
BOOLS = {"true": True, "false": False}


def split_arguments(argv: list[str]):
    """Split a command line into the --config.FIELD=VALUE arguments and the others.

    Returns:
        ([(dotted field, text of the value)], the other arguments).

    Raises:
        ValueError: A field has no value.
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
    """Return the ConfigDict of FILE or FILE:ARG, with fields overridden.

    Args:
        name: FILE or FILE:ARG, see read_config.
        overrides: [(dotted field, text of the value)], see split_arguments.

    Raises:
        ValueError: See read_config; or an override cannot be read, or a later one would replace it.
    """
    config = read_config(name)
    # Overrides apply in order: a block that comes after one of its fields would replace that field
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
    """Return the value that an override's text stands for.

    Args:
        kind: The type of the field's value. NoneType allows any type.
    """
    if text == "None":
        return None
    # A field with a text as its value takes the text as it is, even if it looks like a number
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
