"""Shared by the experiment files: parse config arguments, and count updates for tokens.

A config argument is the part of `--config=FILE:ARG` after the colon. Papers count tokens where
configs count updates.
"""

import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from ml_collections import ConfigDict

BOOLS = {"true": True, "false": False}


def without_fusion_emitters() -> str:
    """Return the XLA flag that selects the CPU compiler's older emitters of fused loops.

    It is "" from jaxlib 0.11.1 on, which removed the flag: XLA aborts a process that sets an
    unknown flag.
    """
    numbers = tuple(int(part) for part in version("jaxlib").split(".")[:3])
    return "--xla_cpu_use_fusion_emitters=false" if numbers < (0, 11, 1) else ""


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
    """Parse a config argument such as "runlocal,seed=3" into a ConfigDict of all keys.

    Args:
        arg: None, or keys and values joined by commas. The key of a bool without a value stands for
            True.
        defaults: The allowed keys, each with a bool, int, float or str. A value has the type of its
            default.

    Raises:
        ValueError: A key is not among the defaults, a key occurs twice, or a value is not of its
            type.
    """
    parsed = ConfigDict(defaults)
    seen_keys = set()
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults:
            near_keys = difflib.get_close_matches(key, defaults, n=1)
            hint = f"did you mean {near_keys[0]}? " if near_keys else ""
            allowed = ", ".join(defaults) or "none, this config takes no argument"
            raise ValueError(
                f"config argument {arg!r}: {key!r} is not a key; {hint}allowed: {allowed}"
            )
        if key in seen_keys:
            raise ValueError(f"config argument {arg!r}: {key!r} is given twice; keep one")
        seen_keys.add(key)
        parsed[key] = _value(arg, key, text if equals else None, type(defaults[key]))
    return parsed


def tiny_base(corpus: str) -> dict:
    """Return `base` of a GRPO config: several experiments begin with this small base."""
    optimizer = dict(learning_rate=3e-3, schedule="cosine", warmup_steps=30, weight_decay=0.05)
    rows = dict(num_documents=60_000, sequence_length=64, batch_size=32, num_steps=2400)
    return dict(corpus=corpus, optimizer=optimizer, **rows)


def stage_config(
    stages: Mapping[str, Callable[[], ConfigDict]], arg: str | None, *, default: str
) -> ConfigDict:
    """Return the config of one of several stages, chosen by an argument "stage=NAME,seed=N".

    Args:
        stages: {name: a function that returns the stage's config}.
        arg: The config argument.
        default: The stage if arg names none.

    Raises:
        ValueError: The stage is unknown; or as parse_arg does.
    """
    parsed = parse_arg(arg, seed=0, stage=default)
    if parsed.stage not in stages:
        raise ValueError(
            f"config argument stage={parsed.stage!r} must be one of {', '.join(stages)}"
        )
    config = stages[parsed.stage]()
    config.seed = parsed.seed
    return config


def batch_ramp(
    start: int, end: int, *, quantum: int, ramp_tokens: int, sequence_length: int
) -> tuple[tuple[int, int], ...]:
    """Return batch sizes that grow: ((first update, sequences), ...).

    The last size is for all later updates. The sequences of an update grow from start to end by
    quantum. Each size below end has an equal share of ramp_tokens, and an update has the size of
    the share in which it starts. Published batch sizes grow like this, but the size of a step is
    not published (arXiv:2412.19437, section 4.2). Integer arithmetic throughout.

    Raises:
        ValueError: The ramp does not rise from start to end by whole quanta, or a count is below 1.
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
        # Tokens that remain in this share, times rises, to avoid a fraction
        remaining_tokens = (rise + 1) * ramp_tokens - tokens * rises
        updates = -(-remaining_tokens // (sequences * sequence_length * rises))
        # There is no update of this size if the last update of the size before ended after this
        # share
        if updates:
            stages.append((update, sequences))
        update += updates
        tokens += updates * sequences * sequence_length
    return (*stages, (update, end))


def updates_until(tokens: int, stages: Sequence[tuple[int, int]], *, sequence_length: int) -> int:
    """Return the number of updates that train on this many tokens, rounded up.

    Args:
        tokens: The number of tokens.
        stages: From batch_ramp, or ((0, sequences),) for a constant size.
        sequence_length: Tokens of a sequence.
    """
    for (first_update, sequences), (end, _) in itertools.pairwise(stages):
        tokens_of_stage = (end - first_update) * sequences * sequence_length
        if tokens <= tokens_of_stage:
            return first_update + -(-tokens // (sequences * sequence_length))
        tokens -= tokens_of_stage
    first_update, sequences = stages[-1]
    return first_update + -(-tokens // (sequences * sequence_length))


def _value(arg, key, text, kind):
    """Convert the text of one value to its type; the text is None if the key has no value."""
    if text is None and kind is bool:
        return True
    try:
        return BOOLS[text.lower()] if kind is bool else kind(text)
    except (AttributeError, KeyError, TypeError, ValueError):
        value_text = "no value" if text is None else repr(text)
        type_text = f"{'an' if kind is int else 'a'} {kind.__name__}"
        raise ValueError(
            f"config argument {arg!r}: {key} needs {type_text}, given {value_text}; "
            f"write --config=FILE:{key}={'true or false' if kind is bool else 'VALUE'}"
        ) from None
