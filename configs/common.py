"""What experiment files share: reading the part of `--config=FILE:ARG` after the colon."""

import difflib

from ml_collections import ConfigDict

BOOLS = {"true": True, "false": False}


def parse_arg(arg, **defaults):
    """Read a config argument such as "runlocal,seed=3" against the defaults that name its keys.

    arg: None, or keys and values joined by commas; the key of a bool may stand alone for True.
    defaults: a bool, int, float or str for each key; a value is read as the type of its default.
    Returns a ConfigDict of all keys. Raises ValueError for a key not among the defaults, one given
    twice, and a value that is not of its type.
    """
    parsed = ConfigDict(defaults)
    seen = set()
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            allowed = ", ".join(defaults) or "none, this config takes no argument"
            raise ValueError(
                f"config argument {arg!r}: {key!r} is not a key; {hint}allowed: {allowed}"
            )
        if key in seen:
            raise ValueError(f"config argument {arg!r}: {key!r} is given twice; keep one")
        seen.add(key)
        parsed[key] = _value(arg, key, text if equals else None, type(defaults[key]))
    return parsed


def _value(arg, key, text, kind):
    """One value as `kind`; text is None where the key stands alone."""
    if text is None and kind is bool:
        return True
    try:
        return BOOLS[text.lower()] if kind is bool else kind(text)
    except (AttributeError, KeyError, TypeError, ValueError):
        given = "no value" if text is None else repr(text)
        raise ValueError(
            f"config argument {arg!r}: {key} needs a {kind.__name__}, given {given}; "
            f"write --config=FILE:{key}={'true or false' if kind is bool else 'VALUE'}"
        ) from None
