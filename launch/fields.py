"""The fields of a config for `train --fields`: names, types, defaults and meanings.

All of it is read from the settings classes that check a config.
"""

import dataclasses
import enum
import functools
import importlib.util
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from ml_collections import ConfigDict

from deepseek_jax import recipes
from deepseek_jax.programs import summary
from deepseek_jax.recipes.experiment import find_recipe, recipe_modules
from deepseek_jax.settings import Between, build, field_hints

FLAG = "--fields"
# A name that the user chooses, as the key of a dict
ANY_NAME = "NAME"
# int32 ends here: a range up to this number is one without an end
INT32 = 2**31
# Blocks that stay dicts in the settings; _block_of has the classes that check them
OPEN = "model", "mesh"
UNIONS = (typing.Union, types.UnionType)


class Mark(enum.Enum):
    """A sign in place of a value."""

    # The field has no default
    REQUIRED = "required"
    # The next lines have the block's values
    BELOW = ""


class Field(NamedTuple):
    """A field of a config.

    Attributes:
        name: Its dotted name, as in optimizer.learning_rate.
        type: Its type and range, in words.
        value: Its value in a config, or its default; or a Mark.
        meaning: One sentence; "" where its name says all.
        is_block: Whether it has fields, which come next.
    """

    name: str
    type: str
    value: object
    meaning: str
    is_block: bool = False


def split_arguments(argv: list[str]) -> tuple[list[str], str | None]:
    """Split --fields from a command line: --fields, --fields=RECIPE or --fields RECIPE.

    Returns:
        (The other arguments, the recipe). The recipe is "" where none is named, and None without
        the flag.
    """
    for index, argument in enumerate(argv):
        flag, equals, name = argument.partition("=")
        if flag != FLAG:
            continue
        others, following = argv[:index], argv[index + 1 :]
        if not equals and following and following[0] in recipe_modules():
            name, *following = following
        return others + following, name
    return argv, None


def shown(recipe: str, config: ConfigDict | None = None) -> str:
    """Return what --fields prints: fields of a config or of a recipe, or all recipes.

    Args:
        recipe: The name of a recipe; "" for the config's.
        config: Its values stand in place of defaults. None for no config.

    Raises:
        ValueError: The recipe is unknown, or the config is wrong.
    """
    if config is not None and not recipe:
        module = find_recipe(config.get("recipe"))
        settings = build(module.SETTINGS, config, "config")
        head = f"Fields of recipe {config.recipe} and this experiment's values"
        return _table(head, fields_of(module.SETTINGS, _values(settings)))
    if recipe:
        if recipe not in recipe_modules():
            raise ValueError(f"{FLAG}={recipe} is not a recipe\n{_recipes()}")
        head = f"Fields of recipe {recipe} and their defaults"
        return _table(head, fields_of(find_recipe(recipe).SETTINGS))
    return _recipes()


def fields_of(
    settings: type, values: Mapping[str, object] = types.MappingProxyType({}), path: str = ""
) -> Iterator[Field]:
    """Yield the fields of a settings class, each block before its own fields.

    Args:
        values: Values by name; a field that it lacks has its default.
        path: The beginning of the names, with a dot at its end.
    """
    meanings, hints = _meanings(settings), field_hints(settings)
    blocks = {name: _block_of(name, hint, values.get(name)) for name, hint in hints.items()}
    fields = [field for field in dataclasses.fields(settings) if field.init]
    # Blocks come last, because they are long, and of them the two that every recipe has
    fields.sort(key=lambda field: (field.name in OPEN, blocks[field.name] is not None))
    for field in fields:
        name, block = f"{path}{field.name}", blocks[field.name]
        value = values[field.name] if field.name in values else _default(field)
        meaning, text = meanings.get(field.name, ""), type_text(hints[field.name])
        if block is None:
            yield Field(name, text, value, meaning)
            continue
        # A list of blocks, or a path in place of a block, is a value
        is_there = dataclasses.is_dataclass(value) or isinstance(value, Mapping)
        meaning = meaning or _sentence(block.cls.__doc__)
        yield Field(name, text, Mark.BELOW if is_there else value, meaning, is_block=True)
        if not block.named:
            yield from fields_of(block.cls, _values(value), f"{name}{block.ending}.")
            continue
        for key, entry in (_values(value) or {ANY_NAME: None}).items():
            yield from fields_of(block.cls, _values(entry), f"{name}.{key}.")


def _default(field):
    if field.default is not dataclasses.MISSING:
        return field.default
    has_factory = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if has_factory else Mark.REQUIRED


def _values(block):
    """Return the values of a block by name; {} for what is no block, such as None or a path."""
    if dataclasses.is_dataclass(block):
        return {field.name: getattr(block, field.name) for field in dataclasses.fields(block)}
    return block if isinstance(block, Mapping) else {}


class _Block(NamedTuple):
    """The settings class of a field; `named` if it is a dict of blocks, and the user names them."""

    cls: type
    named: bool = False
    ending: str = ""


def _block_of(name, hint, value=None):
    """Return the _Block of a field with this name, type hint and value, or None."""
    if hint is dict and name in OPEN:
        # Imported here because they import jax
        from deepseek_jax.models.config import ModelConfig
        from deepseek_jax.models.v4.config import V4Config
        from deepseek_jax.parallel.mesh import MeshSettings

        is_v4 = _values(value).get("model_type") == "deepseek_v4"
        return _Block({"model": V4Config if is_v4 else ModelConfig, "mesh": MeshSettings}[name])
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _Block(hint)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin not in (*UNIONS, dict, tuple):
        return None
    block = next((block for part in parts if (block := _block_of(name, part))), None)
    if block is None or origin in UNIONS:
        return block
    return block._replace(named=origin is dict, ending="[]" if origin is tuple else "")


def type_text(hint) -> str:
    """Return a type in words, with its range: "int at least 1", "'sum' or 'mean'"."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        bare_hint, *marks = parts
        ranges = "".join(f" {_range_text(mark)}" for mark in marks if isinstance(mark, Between))
        return f"{type_text(bare_hint)}{ranges}"
    if origin in UNIONS:
        return " or ".join(dict.fromkeys(map(type_text, parts)))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        is_list = parts[-1] is Ellipsis
        inner = [type_text(part) for part in (parts[:1] if is_list else parts)]
        return f"list of {inner[0]}" if is_list else f"({', '.join(inner)})"
    if origin is dict:
        return f"{ANY_NAME}: {type_text(parts[1])}"
    if hint is dict or dataclasses.is_dataclass(hint):
        return "block"
    return "None" if hint is types.NoneType else hint.__name__


def _range_text(mark):
    no_end = dataclasses.replace(mark, high=math.inf, open_high=False)
    return str(no_end if mark.high >= INT32 else mark)


@functools.cache
def _meanings(settings):
    """Return {field: the first sentence about it} of a class and its bases: their Attributes."""
    meanings: dict[str, str] = {}
    for cls in reversed(settings.__mro__):
        doc = inspect.cleandoc(cls.__doc__ or "")
        _, _, attributes = doc.partition("Attributes:\n")
        # Up to the next section
        attributes = re.split(r"^\S", attributes, maxsplit=1, flags=re.M)[0]
        for names, text in re.findall(
            r"^    ([\w, ]+): ((?:.+\n?)(?:     .+\n?)*)", attributes, re.M
        ):
            meanings |= dict.fromkeys(names.split(", "), _sentence(text))
    return meanings


def _sentence(text):
    """Return the first sentence of a text, without its full stop."""
    sentence = re.split(r"\.\s", f"{' '.join(text.split())} ", maxsplit=1)[0].rstrip()
    return f"{sentence[:1].upper()}{sentence[1:]}"


def _table(head, fields):
    rows = [
        (f.name, _value_text(f.value), f"{f.type}: {f.meaning}" if f.meaning else f.type)
        for f in fields
    ]
    # A long name or value pushes the rest of its own line aside, and no other line
    widths = [min(max(len(row[i]) for row in rows), most) for i, most in enumerate((44, 12))]
    lines = [f"{name:<{widths[0]}}  {value:<{widths[1]}}  {text}" for name, value, text in rows]
    how = f"set one by --config.FIELD=VALUE; {ANY_NAME} is a name of yours"
    return "\n".join([f"{head}; {how}", "", *lines])


def _value_text(value):
    return value.value if isinstance(value, Mark) else repr(value)


def _recipes():
    lines = []
    for name, module in sorted(recipe_modules().items()):
        # Finds the file, and imports no recipe
        spec = importlib.util.find_spec(f"{recipes.__name__}.{module}")
        assert spec is not None and spec.origin is not None
        lines.append(f"  {name:<14}{summary(Path(spec.origin))}")
    return "\n".join([f"{FLAG} RECIPE lists the fields of one of these:", "", *lines])
