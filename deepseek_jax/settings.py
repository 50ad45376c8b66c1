"""A block of the config -> a frozen dataclass, in which every field is known and of its type."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping

from ml_collections import ConfigDict


def build(cls, block, path):
    """Build the dataclass `cls` from a config block, checking names and types.

    block: a ConfigDict or mapping; nested blocks become nested dataclasses, lists become tuples,
    an int may stand for a float (a bool for neither). path: where the block stands, as in
    "config.rl", for messages. Raises ValueError for an unknown field (with a suggestion), a missing
    one and a value of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if not isinstance(block, (Mapping, ConfigDict)):
        raise ValueError(f"{_shown(path, block)} must be a block with fields {', '.join(fields)}")
    given = dict(block.items())
    for name in given:
        if name not in fields:
            raise ValueError(f"{path}.{name} is not a field; {suggest(name, fields)}")
    missing = [name for name, field in fields.items() if name not in given and _required(field)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; set {path}.{missing[0]}")
    hints = typing.get_type_hints(cls)
    checked = {name: _checked(given[name], hints[name], f"{path}.{name}") for name in given}
    return cls(**checked)


def added(default):
    """A field that came after the first form of the records in stage.json: it is no part of their hashes."""
    return dataclasses.field(default=default, metadata={"since": 2})


def check_counts(settings, path):
    """Raise ValueError, naming the field, for an int of the dataclass that is below 1; a seed may be 0."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if type(value) is int and field.name != "seed" and value < 1:
            raise ValueError(f"{path}.{field.name}={value} must be at least 1")


def check_evaluations(settings, path):
    """Raise ValueError where an evaluation would fall on a step that is not logged, and be lost."""
    if settings.eval_every % settings.log_every:
        raise ValueError(
            f"{path}.eval_every={settings.eval_every} falls on steps that are not logged; set it to a "
            f"multiple of {path}.log_every={settings.log_every}"
        )


def suggest(name, allowed):
    """The end of an error about an unknown name: the nearest of the allowed ones, then all."""
    allowed = list(allowed)
    close = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed) or 'none'}"


def _required(field):
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _shown(path, value):
    return f"{path}={value!r} ({type(value).__name__})"


def _checked(value, hint, path):
    """`value` as the type that `hint` asks for, or a ValueError that names the field."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _checked_union(value, args, path)
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{path}={value!r} is not allowed; {suggest(value, map(str, args))}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, path)
    if origin is tuple and isinstance(value, (list, tuple)):
        return _checked_tuple(value, args, path)
    if hint is dict and isinstance(value, (Mapping, ConfigDict)):
        return value.to_dict() if isinstance(value, ConfigDict) else dict(value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is typing.Any or (type(hint) is type and type(value) is hint):
        return value
    raise ValueError(f"{_shown(path, value)} must be {_wanted(hint)}")


def _checked_union(value, args, path):
    if value is None and types.NoneType in args:
        return None
    options = [option for option in args if option is not types.NoneType]
    if len(options) == 1:  # its own error says more than ours would
        return _checked(value, options[0], path)
    errors = []
    for option in options:
        try:
            return _checked(value, option, path)
        except ValueError as error:
            errors.append(error)
    wanted = " or ".join(map(_wanted, args))
    raise ValueError(f"{_shown(path, value)} must be {wanted}") from errors[-1]


def _checked_tuple(value, args, path):
    if args[-1] is Ellipsis:
        args = args[:1] * len(value)
    if len(args) != len(value):
        raise ValueError(f"{_shown(path, value)} must have {len(args)} entries, not {len(value)}")
    entries = enumerate(zip(value, args, strict=True))
    return tuple(_checked(entry, hint, f"{path}[{i}]") for i, (entry, hint) in entries)


def _wanted(hint):
    if hint is types.NoneType:
        return "None"
    return f"a {hint.__name__}" if typing.get_origin(hint) is None else str(hint)
