"""What experiment files share: reading the part of `--config=FILE:ARG` after the colon, and counting
updates where a paper counts tokens.
"""

import difflib
from importlib.metadata import version

from ml_collections import ConfigDict

BOOLS = {"true": True, "false": False}


def without_fusion_emitters():
    """The flag of XLA's CPU compiler for its older emitters of fused loops, "" where there is none any more:
    jaxlib 0.11.1 took it out, and a process that is given an unknown flag is aborted.
    """
    numbers = tuple(int(part) for part in version("jaxlib").split(".")[:3])
    return "--xla_cpu_use_fusion_emitters=false" if numbers < (0, 11, 1) else ""


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


def stage_config(stages, arg, *, default):
    """The config of one of several stages, by a config argument of "stage=NAME,seed=N".

    stages: name -> a function that makes the stage's ConfigDict. default: the stage that is not named.
    Raises ValueError as parse_arg, and for a stage that is none of them.
    """
    arg = parse_arg(arg, seed=0, stage=default)
    if arg.stage not in stages:
        raise ValueError(f"config argument stage={arg.stage!r} is none of {', '.join(stages)}")
    config = stages[arg.stage]()
    config.seed = arg.seed
    return config


def batch_ramp(start, end, *, quantum, ramp_tokens, sequence_length):
    """The sequences of each update, in stages: ((first update, sequences), ...), the last for good.

    start sequences grow by quantum to end, in equal shares of ramp_tokens tokens, as published sizes
    do (arXiv:2412.19437, section 4.2, which does not say in what steps); an update takes the size of
    the share that it starts in. Integers throughout. Raises ValueError for a ramp that does not rise
    from start to end by whole quanta, and for counts below 1.
    """
    numbers = dict(start=start, quantum=quantum, ramp_tokens=ramp_tokens)
    for name, number in (numbers | dict(sequence_length=sequence_length)).items():
        if number < 1:
            raise ValueError(f"batch ramp: {name}={number} must be at least 1")
    if start % quantum or end % quantum or start >= end:
        raise ValueError(
            f"batch ramp: start={start} and end={end} must be multiples of quantum={quantum}, "
            "start below end"
        )
    stages, update, tokens = [], 0, 0
    rises = (end - start) // quantum
    for rise in range(rises):
        sequences = start + rise * quantum
        left = (rise + 1) * ramp_tokens - tokens * rises  # of this share, times rises
        updates = -(-left // (sequences * sequence_length * rises))
        if updates:  # else the update before reached past this share
            stages.append((update, sequences))
        update += updates
        tokens += updates * sequences * sequence_length
    return (*stages, (update, end))


def updates_until(tokens, stages, *, sequence_length):
    """How many updates it takes to see this many tokens, the last of them perhaps in part.

    stages: of batch_ramp, or ((0, sequences),) where the size never changes.
    """
    ends = [first for first, _ in stages[1:]] + [None]
    for (first, sequences), end in zip(stages, ends, strict=True):
        per_update = sequences * sequence_length
        updates = -(-tokens // per_update)
        if end is None or updates <= end - first:
            return first + updates
        tokens -= (end - first) * per_update


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
