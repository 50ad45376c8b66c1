"""Shared by the experiment files: parse the part of `--config=FILE:ARG` after the colon, and count updates
where a paper counts tokens.
"""

import difflib
from importlib.metadata import version

from ml_collections import ConfigDict

BOOLS = {"true": True, "false": False}


def without_fusion_emitters() -> str:
    """The XLA flag that selects the CPU compiler's older emitters of fused loops; "" from jaxlib 0.11.1 on,
    which removed the flag: XLA aborts a process that sets an unknown flag.
    """
    numbers = tuple(int(part) for part in version("jaxlib").split(".")[:3])
    return "--xla_cpu_use_fusion_emitters=false" if numbers < (0, 11, 1) else ""


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
    """Parse a config argument such as "runlocal,seed=3". The defaults name the allowed keys.

    arg: None, or keys and values joined by commas; the key of a bool may stand alone for True.
    defaults: a bool, int, float or str for each key; a value has the type of its default.
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


def tiny_base(corpus: str) -> dict:
    """The base of a small world that several experiments begin with: `base` of a GRPO config."""
    optimizer = dict(learning_rate=3e-3, schedule="cosine", warmup_steps=30, weight_decay=0.05)
    rows = dict(num_documents=60_000, sequence_length=64, batch_size=32, num_steps=2400)
    return dict(corpus=corpus, optimizer=optimizer, **rows)


def stage_config(stages, arg: str | None, *, default: str) -> ConfigDict:
    """The config of one of several stages, chosen by a config argument "stage=NAME,seed=N".

    stages: name -> a function that makes the stage's ConfigDict. default: the stage if arg names none.
    Raises ValueError as parse_arg does, and for an unknown stage.
    """
    arg = parse_arg(arg, seed=0, stage=default)
    if arg.stage not in stages:
        raise ValueError(f"config argument stage={arg.stage!r} must be one of {', '.join(stages)}")
    config = stages[arg.stage]()
    config.seed = arg.seed
    return config


def batch_ramp(start: int, end: int, *, quantum: int, ramp_tokens: int, sequence_length: int):
    """Batch sizes that grow: ((first update, sequences), ...), the last size for all later updates.

    Sequences grow from start to end by quantum, with an equal share of ramp_tokens for each size.
    Published batch sizes grow like this, but the size of a step is not published (arXiv:2412.19437,
    section 4.2). An update has the size of the share in which it starts. Integer arithmetic throughout.
    Raises ValueError for a ramp that does not rise from start to end by whole quanta, and for counts
    below 1.
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
        # Tokens that remain in this share, times rises, which avoids a fraction
        left = (rise + 1) * ramp_tokens - tokens * rises
        updates = -(-left // (sequences * sequence_length * rises))
        # None if the previous size's last update went past the end of this share
        if updates:
            stages.append((update, sequences))
        update += updates
        tokens += updates * sequences * sequence_length
    return (*stages, (update, end))


def updates_until(tokens: int, stages, *, sequence_length: int) -> int:
    """The number of updates that train on this many tokens, rounded up.

    stages: from batch_ramp, or ((0, sequences),) for a constant size.
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
        wanted = f"{'an' if kind is int else 'a'} {kind.__name__}"
        raise ValueError(
            f"config argument {arg!r}: {key} needs {wanted}, given {given}; "
            f"write --config=FILE:{key}={'true or false' if kind is bool else 'VALUE'}"
        ) from None
