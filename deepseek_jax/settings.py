"""Settings from a config: a block becomes a frozen dataclass, with names, types, ranges checked."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard, TypeVar

from ml_collections import ConfigDict

from deepseek_jax.errors import at, mark_path, suggest


@dataclasses.dataclass(frozen=True)
class Between:
    """The range of a field, as in Annotated[float, Between(0, 1)].

    NaN and infinity are in no range.

    Attributes:
        low: The lowest number.
        high: The highest number.
        open_low: Whether `low` itself is not in the range.
        open_high: Whether `high` itself is not in the range.
        or_zero: Whether 0 is in the range too.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    or_zero: bool = False

    def holds(self, number: float) -> bool:
        """Return whether the number is in the range."""
        if self.or_zero and number == 0:
            return True
        above_low = number > self.low if self.open_low else number >= self.low
        below_high = number < self.high if self.open_high else number <= self.high
        # Infinity passes the default bounds
        return above_low and below_high and math.isfinite(number)

    def __str__(self):
        low_text = f"{'above' if self.open_low else 'at least'} {self.low}"
        if self.high == math.inf:
            return "a finite number" if self.low == -math.inf else low_text
        if not self.open_low and not self.open_high:
            return f"{'0 or ' if self.or_zero else ''}within {self.low}..{self.high}"
        return f"{low_text} and {'below' if self.open_high else 'at most'} {self.high}"


class Rising:
    """The range of pairs (step, number): at least one pair, with steps that begin at 0 and rise."""

    def holds(self, pairs: Sequence[tuple[int, float]]) -> bool:
        """Return whether the pairs are in the range."""
        steps = [step for step, _ in pairs]
        return steps[:1] == [0] and steps == sorted(set(steps))

    def __str__(self):
        return "pairs (step, number) whose steps begin at 0 and rise"


@dataclasses.dataclass(frozen=True)
class OnHub:
    """A mark of a text that may be a name on the Hugging Face hub.

    Attributes:
        kind: "model" or "dataset".
    """

    kind: str

    def holds(self, text: str) -> bool:
        """Return True, because the code that reads the text says what is wrong with it."""
        return True


@dataclasses.dataclass(frozen=True)
class NamesCode:
    """A mark of a text that may name code: FILE.py:NAME or package.module:NAME, see named_code."""

    def holds(self, text: str) -> bool:
        """Return True, for the same reason as OnHub."""
        return True


# A path, or a name on the hub
Checkpoint = Annotated[str, OnHub("model")]
Data = Annotated[str, OnHub("dataset")]
# A reward or a task: one of this project's, or a user's function
Named = Annotated[str, NamesCode()]
# A count of entries in arrays: int32 on the device
Count = Annotated[int, Between(1, 2**31, open_high=True)]
# A count of at least two, for a group, an interval or a text to predict
Several = Annotated[int, Between(2)]
Natural = Annotated[int, Between(0)]
Positive = Annotated[float, Between(0, open_low=True)]
NonNegative = Annotated[float, Between(0)]
Share = Annotated[float, Between(0, 1)]
PositiveShare = Annotated[float, Between(0, 1, open_low=True)]
# Outside this range float32 logits overflow, or the most and the least likely token become
# equal; 0 is greedy
Temperature = Annotated[float, Between(0.001, 100.0)]
GreedyOrTemperature = Annotated[float, Between(0.001, 100.0, or_zero=True)]
# An int stays an int here, because the hash of a stage covers the config as it is written
Weights = dict[Named, int | float]

# A key of jax.random has 32 bits of a seed; later stages and updates have slightly larger seeds
Seed = Annotated[int, Between(0, 2**31, open_high=True)]
# Steps are int32 on the device
Step = Annotated[int, Between(0, 2**31, open_high=True)]
# A number, or pairs (first step, number): each number applies from its step on
CountBySteps = Count | Annotated[tuple[tuple[Step, Count], ...], Rising()]
PositiveBySteps = Positive | Annotated[tuple[tuple[Step, Positive], ...], Rising()]
TemperatureBySteps = Temperature | Annotated[tuple[tuple[Step, Temperature], ...], Rising()]
NonNegativeBySteps = NonNegative | Annotated[tuple[tuple[Step, NonNegative], ...], Rising()]


# A dataclass of settings
Built = TypeVar("Built")
# A mark in the hint of a text
Mark = TypeVar("Mark", OnHub, NamesCode)
# A key in the metadata of fields that no hash of training.lineage covers
UNHASHED = "unhashed"


def unhashed(
    default: Any = dataclasses.MISSING, *, default_factory: Any = dataclasses.MISSING
) -> Any:
    """Return a dataclass's field that no hash of a stage covers.

    Such a field changes no result, or is hashed as a separate input.
    """
    return dataclasses.field(
        default=default, default_factory=default_factory, metadata={UNHASHED: True}
    )


class Settings:
    """The root of settings classes, which ends the chain of their __post_init__ methods.

    Each __post_init__ calls super's.
    """

    def __post_init__(self):
        pass


def build(cls: type[Built], block: object, path: str) -> Built:
    """Build the dataclass `cls` from a config block, and check names, types and ranges.

    Args:
        block: A ConfigDict or a mapping. Nested blocks become nested dataclasses, and lists become
            tuples. An int may stand for a float, but a bool stands for neither.
        path: The place of the block, as in "config.rl", for messages.

    Raises:
        ValueError: A field is unknown (the message suggests one) or missing; a value has another
            type, or is out of the range that its annotation gives; or the dataclass itself raises
            one with a message that begins with the field, relative to the block.
    """
    try:
        return _built(cls, block, path)
    except ValueError as error:
        # The message begins with a path: errors.at then joins an outer path to it with a dot
        mark_path(error)
        raise


def _built(cls, block, path):
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if not isinstance(block, (Mapping, ConfigDict)):
        raise ValueError(f"{_shown(path, block)} must be a block with fields {', '.join(fields)}")
    values = dict(block.items())
    for name in values:
        if name not in fields:
            raise ValueError(f"{path}.{name} is not a field; {suggest(name, fields)}")
    missing = [name for name, field in fields.items() if name not in values and _required(field)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; set {path}.{missing[0]}")
    hints = field_hints(cls)
    checked_values = {
        name: _checked(values[name], hints[name], f"{path}.{name}") for name in values
    }
    with at(path):
        return cls(**checked_values)


def spread(
    cls: type, field: str, value: object, path: str = "config"
) -> Iterator[tuple[str, object]]:
    """List the fields that one value of a dotted field sets in a config.

    A dict for a block sets the fields that it names. If its keys are names that the user chose, the
    dict is the value of the field.

    Args:
        cls: The dataclass of the config.
        field: As in "data.num_held_out".
        value: The value for the field.
        path: The place of the config, for messages.

    Yields:
        (dotted field, value).

    Raises:
        ValueError: A name is not a field, as in build.
    """
    hint = _hint_at(cls, field.split("."), path)
    is_block = hint is dict or _is_dataclass(hint)
    if not (is_block and isinstance(value, Mapping)):
        yield field, value
        return
    for name, entry in value.items():
        yield from spread(cls, f"{field}.{name}", entry, path)


def _hint_at(hint, names, path):
    """Return the hint of a field below a hint, or None where no hint describes the fields."""
    for name in names:
        _, origin, args = _parts(hint)
        if origin is dict:
            hint = _block(args[1])
        elif _is_dataclass(hint):
            if name not in (fields := field_hints(hint)):
                raise ValueError(f"{path}.{name} is not a field; {suggest(name, fields)}")
            hint = _block(fields[name])
        else:
            return None
        path = f"{path}.{name}"
    return hint


def _is_dataclass(hint: object) -> TypeGuard[type]:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _block(hint):
    """Return the hint of the one block that a field may be, without marks and without None.

    A hint that is not a union is returned without its marks. A union without exactly one block is
    None.
    """
    bare_hint, origin, args = _parts(hint)
    if origin is not typing.Union:
        return bare_hint
    blocks = [block for arg in args if (block := _block(arg)) is dict or _is_dataclass(block)]
    return blocks[0] if len(blocks) == 1 else None


def check_fields(block: object) -> None:
    """Check the types and ranges of a dataclass that was not built from a config.

    Its __post_init__ calls this.

    Raises:
        ValueError: As build does. The message begins with the field.
    """
    cls: type = type(block)
    for name, hint in field_hints(cls).items():
        _checked(getattr(block, name), hint, name)


@functools.cache
def field_hints(cls: type) -> dict:
    """Return {field: its type hint, with marks} of a settings class."""
    return typing.get_type_hints(cls, include_extras=True)


def marked_texts(
    block: object, kind: type[Mark], path: tuple = ()
) -> Iterator[tuple[tuple, str, Mark]]:
    """Find the texts in a dataclass of settings that have a mark of this kind in their type hint.

    They are fields, entries of lists, and keys of dicts.

    Args:
        kind: The class of the mark, such as OnHub.
        path: The keys from the root to the block.

    Yields:
        (keys from the root, text, mark). The keys for a key of a dict are the ones of its dict.
    """
    cls: type = type(block)
    for field, hint in field_hints(cls).items():
        mark = next((mark for mark in _marks(hint) if isinstance(mark, kind)), None)
        yield from _marked(getattr(block, field), kind, mark, (*path, field))


def _marked(value, kind, mark, path):
    if dataclasses.is_dataclass(value):
        yield from marked_texts(value, kind, path)
    elif isinstance(value, dict):
        for key, entry in value.items():
            if mark is not None:
                yield path, key, mark
            yield from _marked(entry, kind, None, (*path, key))
    elif mark is not None and isinstance(value, tuple):
        yield from (((*path, index), entry, mark) for index, entry in enumerate(value))
    elif mark is not None and isinstance(value, str):
        yield path, value, mark


def _marks(hint):
    """Return the marks of a hint and of the hints within it."""
    own_marks = list(getattr(hint, "__metadata__", ()))
    _, _, args = _parts(hint)
    return own_marks + [mark for arg in args for mark in _marks(arg)]


def _required(field):
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _shown(path, value):
    return f"{path}={value!r} ({type(value).__name__})"


def _checked(value, hint, path):
    """Return `value` in the type and range of `hint`, or raise ValueError with the field's name."""
    typed_value = _of_type(value, hint, path)
    # A plain float has no range, but must be finite
    for mark in getattr(hint, "__metadata__", (Between(),) if hint is float else ()):
        if not mark.holds(typed_value):
            raise ValueError(f"{path}={value!r} must be {mark}")
    return typed_value


# Not pydantic: if strict, it takes no mapping for a dataclass and no list for a tuple; if not, it
# takes True for 1
def _of_type(value, hint, path):
    bare_hint, origin, args = _parts(hint)
    if origin is typing.Union:
        return _checked_union(value, args, path)
    if origin is Literal and value not in args:
        raise ValueError(f"{path}={value!r} is not allowed; {suggest(value, args)}")
    if _is_dataclass(bare_hint):
        # check_fields passes blocks that are already built
        return value if isinstance(value, bare_hint) else build(bare_hint, value, path)
    if not _is_a(value, hint):
        raise ValueError(f"{_shown(path, value)} must be {_wanted(hint)}")
    if origin is tuple:
        return _checked_tuple(value, args, path)
    if origin is dict:
        entries = value.items()
        return {name: _checked(entry, args[1], _below(path, name)) for name, entry in entries}
    if bare_hint is dict:
        return value.to_dict() if isinstance(value, ConfigDict) else dict(value)
    return float(value) if bare_hint is float else value


def _parts(hint):
    """Split a hint: (the hint without its range, its origin, its arguments).

    The origin of a union is typing.Union.
    """
    bare_hint = hint.__origin__ if typing.get_origin(hint) is Annotated else hint
    origin = typing.get_origin(bare_hint)
    # In Python 3.11 int | None has another origin than Optional[int], for the same type
    return (
        bare_hint,
        typing.Union if origin is types.UnionType else origin,
        typing.get_args(bare_hint),
    )


def _is_a(value, hint):
    """Return whether a value is of a hint's kind; its entries may still be wrong."""
    bare_hint, origin, args = _parts(hint)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, (list, tuple))
    if dict in (bare_hint, origin) or _is_dataclass(bare_hint):
        return isinstance(value, (Mapping, ConfigDict))
    # type, not isinstance: a bool is an instance of int
    if bare_hint is float:
        return type(value) in (int, float)
    return bare_hint is typing.Any or type(value) is bare_hint


def _below(path, name):
    return f"{path}.{name}" if str(name).isidentifier() else f"{path}[{name!r}]"


def _checked_union(value, args, path):
    if value is None and types.NoneType in args:
        return None
    options = [option for option in args if option is not types.NoneType]
    # The error about a single option is more exact than "must be this or that"
    matching_options = options if len(options) == 1 else [o for o in options if _is_a(value, o)]
    if not matching_options:
        type_names = " or ".join(map(_wanted, args))
        raise ValueError(f"{_shown(path, value)} must be {type_names}")
    return _checked(value, matching_options[0], path)


def _checked_tuple(value, args, path):
    if args[-1] is Ellipsis:
        args = args[:1] * len(value)
    if len(args) != len(value):
        raise ValueError(f"{_shown(path, value)} must have {len(args)} entries, not {len(value)}")
    entries = enumerate(zip(value, args, strict=True))
    return tuple(_checked(entry, hint, f"{path}[{i}]") for i, (entry, hint) in entries)


def _wanted(hint):
    """Describe a type in words, as in "an int" or "a list of (int, float)"."""
    name = _name(hint)
    return name if name == "None" else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _name(hint):
    bare_hint, origin, args = _parts(hint)
    if bare_hint is types.NoneType:
        return "None"
    if origin is typing.Union:
        return " or ".join(map(_name, args))
    if origin is tuple and args[-1] is Ellipsis:
        return f"list of {_name(args[0])}"
    if origin is tuple:
        return f"({', '.join(map(_name, args))})"
    if dict in (bare_hint, origin) or _is_dataclass(bare_hint):
        return "block"
    return bare_hint.__name__
