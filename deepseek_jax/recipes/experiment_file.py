"""Experiments as Python files: load the ConfigDict that a file returns, and set its fields."""

import contextlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from deepseek_jax.errors import at, renamed
from deepseek_jax.named_code import import_file, is_code, look_beside, named
from deepseek_jax.notebooks import plainly
from deepseek_jax.programs import given_file, home, is_ours, nearest_file
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.settings import spread

Result = TypeVar("Result")


@plainly()
def config(name: str | os.PathLike, /, **fields: Any) -> ConfigDict:
    """Return the config of an experiment, for `train`: a shipped one by name, or a file by path.

    Args:
        name: As for --config, with the argument of its get_config, as in "grpo_small:seed=1".
        **fields: New values for fields of the config. A dict for a block changes only the fields
            that it names. A key with a dot, such as "data.num_held_out", changes one field of a
            block; pass it as **{"data.num_held_out": 8}. If the keys of a block are names that the
            user chooses, as in rewards, a dict replaces the whole block. A function stands for its
            FILE.py:NAME.

    Raises:
        ValueError: The name or a field is unknown.
    """
    with renamed("--config.", "config."), at("name", "--config"), _shipped_first():
        experiment = read_config(os.fspath(name))
    with renamed("--config.", "config."):
        for field, value in named(fields).items():
            for path, new_value in spread(
                find_recipe(experiment.get("recipe")).SETTINGS, field, value
            ):
                set_field(experiment, path, new_value)
    return experiment


@contextlib.contextmanager
def _shipped_first():
    """Let a file import the shipped `configs`, even if the caller has a module of that name."""

    def take_modules():
        names = [name for name in sys.modules if name.partition(".")[0] == "configs"]
        return {name: sys.modules.pop(name) for name in names}

    caller_modules = take_modules()
    sys.path.insert(0, str(home()))
    try:
        yield
    finally:
        sys.path.remove(str(home()))
        take_modules()
        sys.modules.update(caller_modules)


def read_config(name: str) -> ConfigDict:
    """Return the ConfigDict of FILE or FILE:ARG.

    Args:
        name: FILE as for programs.given_file; ARG is the argument of the file's get_config.

    Raises:
        ValueError: The file has no get_config that returns a ConfigDict, or get_config raises an
            error.
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
    return config


def load_function(path: str, name: str, flag: str) -> Callable:
    """Return the function `name` of the Python file that `flag` gives.

    Raises:
        ValueError: The file or the function is missing.
    """
    path = given_file(path, flag)
    if not Path(path).is_file():
        raise ValueError(
            f"{flag}={path}: there is no such file; {nearest_file(path, flag)}give the path of a Python file"
        )
    if Path(path).suffix != ".py":
        raise ValueError(f"{flag}={path} is not a Python file")
    module = call(lambda: import_file(Path(path)), f"{flag}={path}", path)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"{flag}={path} has no function {name}; define it there")
    return getattr(module, name)


def call(code: Callable[[], Result], flag: str, path: str) -> Result:
    """Return code(), which runs the Python file at `path`; an error names the flag and the line.

    Args:
        code: The function to call.
        flag: The flag that names the file, with its value.
        path: The path of the file.

    Raises:
        ValueError: For any error of code(). An error that this project raises keeps its message.
            For any other, the message has the flag and the line of the file.
    """
    try:
        return code()
    # A file that calls sys.exit(0) would look like a success
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        last_file = frames[-1].filename
        is_same_file = Path(last_file).resolve() == Path(path).resolve()
        if isinstance(error, ValueError) and is_ours(last_file) and not is_same_file:
            raise
        file, argument_hint = (
            Path(path).resolve(),
            "" if flag.endswith(path) else ", or the argument",
        )
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file]
        # A file that does not parse has run no line
        line = lines[-1] if lines else getattr(error, "lineno", None) or 1
        raise ValueError(
            f"{flag}: {path}, line {line}: {type(error).__name__}: {error}; correct that line{argument_hint}"
        ) from error


def set_field(config: ConfigDict, field: str, value: object):
    """Set a dotted field to a value of any type, adding the blocks that lead to it.

    It does not check names: only the recipe's settings know the fields, and they refuse a wrong
    one.

    Raises:
        ValueError: The field is below a value that is not a block.
    """
    block, name = block_of(config, field)
    if "." in name:
        # The block of a config file takes no key with a dot, so a new block replaces it
        set_field(config, field.removesuffix(f".{name}"), block.to_dict() | {name: value})
        return
    _set(block, name, as_config(value) if isinstance(value, dict) else value)


def block_of(config: ConfigDict, field: str) -> tuple[ConfigDict, str]:
    """Return (the block that holds a dotted field, the field's name in that block).

    Missing blocks are added.

    Raises:
        ValueError: The field is below a value that is not a block.
    """
    *block_names, name = _parts(config, field)
    block, path = config, "config"
    for block_name in block_names:
        path = f"{path}.{block_name}"
        if block.get(block_name) is None:
            _set(block, block_name, as_config({}))
        block = block[block_name]
        if not isinstance(block, ConfigDict):
            raise ValueError(f"--config.{field}: {path}={block!r} is not a block with fields")
    return block, name


def _parts(config, field):
    """Split a dotted field; its last part may be code, as in rewards.my_rewards.py:brief."""
    names: list[str] = []
    block, remaining_field = config, field
    while "." in remaining_field:
        block_name, _, after_dot = remaining_field.partition(".")
        inner_block = (
            block.get(block_name)
            if isinstance(block, ConfigDict) and block_name in block.keys()
            else None
        )
        if names and is_code(remaining_field) and not isinstance(inner_block, ConfigDict):
            break
        names, block, remaining_field = [*names, block_name], inner_block, after_dot
    return [*names, remaining_field]


def as_config(fields: dict) -> ConfigDict:
    """Make a ConfigDict of fields; a key may have dots, such as a reward FILE.py:NAME."""
    return ConfigDict(fields, allow_dotted_keys=True)


def _set(block, name, value):
    with block.unlocked(), block.ignore_type():
        block[name] = value
