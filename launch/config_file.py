"""The config of a run: what FILE.py:ARG returns, with the fields that the command line sets.

A field is set by --config.FIELD=VALUE. FIELD is dotted, as loss.clip_eps_high. VALUE is written as in Python:
3, 1e-4, True, None, "['a.jsonl', 'b.jsonl']", "[[0, 1.0], [10, 0.7]]" or "{'fsdp': 4}"; a string by itself
needs no quotes. The file may lack the field, or have a value of another type there.
"""

import ast
import inspect
import re
import traceback
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from deepseek_jax.named_code import import_file, is_code, look_beside
from deepseek_jax.programs import given_file, is_ours, nearest_file

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
    """The ConfigDict of FILE or FILE:ARG, with overrides as of split_arguments. FILE: of programs.given_file.

    Raises ValueError for a file without a get_config that returns one, where get_config raises one, and for
    an override that cannot be read or that a later one would replace.
    """
    path, *arg = name.split(":", 1)
    path = given_file(path, "--config")
    look_beside(path)
    get_config = load_function(path, "get_config", "--config")
    try:
        inspect.signature(get_config).bind(*arg)
    except TypeError as error:
        raise ValueError(
            f"--config={name}: get_config does not fit: {error}; write def get_config(arg=None)"
        ) from error
    config = call(lambda: get_config(*arg), f"--config={name}", path)
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"--config={path}: get_config returned {config!r}; it must return a ConfigDict"
        )
    # Overrides apply in order: a block given after one of its fields would replace that field
    for index, (field, text) in enumerate(overrides):
        inner = [name for name, _ in overrides[:index] if name.startswith(f"{field}.")]
        if inner:
            raise ValueError(f"--config.{field} would replace --config.{inner[0]}; give it first")
        _override(config, field, text)
    return config


def load_function(path: str, name: str, flag: str):
    """The function `name` of the Python file that `flag` gives. Raises ValueError where it is missing."""
    path = given_file(path, flag)
    if not Path(path).is_file():
        raise ValueError(
            f"{flag}={path}: there is no such file; {nearest_file(path, flag)}give the path of a Python file"
        )
    if Path(path).suffix != ".py":
        raise ValueError(f"{flag}={path} is not a Python file")
    module = call(lambda: import_file(path), f"{flag}={path}", path)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"{flag}={path} has no function {name}; define it there")
    return getattr(module, name)


def call(code: Callable, given: str, path: str):
    """code(), which runs the Python file at path. given: the flag that names it.

    Raises ValueError for any error: what this project raises has its own message, and for any other the
    message says the flag and the line of the file.
    """
    try:
        return code()
    # A file that calls sys.exit(0) would look like a success
    except (Exception, SystemExit) as error:
        places = traceback.extract_tb(error.__traceback__)
        last = places[-1].filename
        itself = Path(last).resolve() == Path(path).resolve()
        if isinstance(error, ValueError) and is_ours(last) and not itself:
            raise
        file, argument = Path(path).resolve(), "" if given.endswith(path) else ", or the argument"
        lines = [place.lineno for place in places if Path(place.filename).resolve() == file]
        # A file that does not parse has run no line
        line = lines[-1] if lines else getattr(error, "lineno", None) or 1
        raise ValueError(
            f"{given}: {path}, line {line}: {type(error).__name__}: {error}; correct that line{argument}"
        ) from error


def set_field(config: ConfigDict, field: str, value):
    """Set a dotted field to a value of any type, adding the blocks that lead to it.

    Only the recipe's settings know the fields: they refuse a wrong one. Raises ValueError where the field is
    below a value that is not a block.
    """
    block, name = _place(config, field)
    if "." in name:
        # A block of a config's file takes no such name: another block takes its place
        set_field(config, field.removesuffix(f".{name}"), block.to_dict() | {name: value})
        return
    _set(block, name, as_config(value) if isinstance(value, dict) else value)


def _override(config, field, text):
    block, name = _place(config, field)
    kind = block.get_type(name) if name in block.keys() else type(None)
    set_field(config, field, _value(field, text, kind))


def _place(config, field):
    """(the block that holds a dotted field, the field's own name)."""
    *outer, name = _parts(config, field)
    block, path = config, "config"
    for part in outer:
        path = f"{path}.{part}"
        if block.get(part) is None:
            _set(block, part, as_config({}))
        block = block[part]
        if not isinstance(block, ConfigDict):
            raise ValueError(f"--config.{field}: {path}={block!r} is not a block with fields")
    return block, name


def _parts(config, field):
    """The parts of a dotted field. The last may be code, as in rewards.my_rewards.py:brief."""
    parts, block, rest = [], config, field
    while "." in rest:
        part, _, after = rest.partition(".")
        inner = block.get(part) if isinstance(block, ConfigDict) and part in block.keys() else None
        if parts and is_code(rest) and not isinstance(inner, ConfigDict):
            break
        parts, block, rest = [*parts, part], inner, after
    return [*parts, rest]


def as_config(fields: dict) -> ConfigDict:
    """A ConfigDict of fields; a reward may be FILE.py:NAME."""
    return ConfigDict(fields, allow_dotted_keys=True)


def _set(block, name, value):
    with block.unlocked(), block.ignore_type():
        block[name] = value


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
