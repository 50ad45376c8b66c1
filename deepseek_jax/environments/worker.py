"""Code that runs in a worker process: calls of the user's tools and environments, under limits.

Tests: tests/environments/test_steps.py, tests/environments/test_calls.py.
"""

import hashlib
import inspect
import math
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deepseek_jax.environments.code import Code, ErrorForModel, public_methods
from deepseek_jax.named_code import import_unchanged, with_line
from deepseek_jax.rewards.worker import note_call, watched

# Limit of the import of all files, and the number that is noted for it in place of a call's
IMPORT_SECONDS, IMPORT = 60.0, -1
# Most characters of an error that the model reads
ERROR_CHARS = 500
TOO_LONG = "{} returned {} bytes, above call_bytes={}"


class ActionResult(NamedTuple):
    """Result of what a turn of the model did: its calls, or a step.

    Attributes:
        texts: One text for each call ("Error: ..." if it raised), or one for a step. [] after a
            failure, and after the step that ends the conversation.
        errors: Number of calls that raised, had an unknown name or arguments that the function does
            not take, or exceeded a limit.
        seconds: Time in the user's code.
        ended: True if step returned None.
        failure: In words, why the conversation ended by a limit or with its worker, or None.
        misformed: In words, what step returned in place of a text, or None. The model reads this
            too.
    """

    texts: list[str]
    errors: int
    seconds: float
    ended: bool = False
    failure: str | None = None
    misformed: str | None = None


class OwnedEnvironment(NamedTuple):
    """An environment, and the number of the conversation that began it."""

    number: int
    environment: Any


class PaidReward(NamedTuple):
    """Result of get_reward.

    Attributes:
        number: Number of the conversation that began the environment.
        reward: A finite number, or a text that says why there is none.
    """

    number: int
    reward: float | str


class _State(NamedTuple):
    """State of a worker, from its start on.

    Attributes:
        code: The user's code, before its import.
        call_seconds: Longest time of one call.
        call_bytes: Most bytes of the text that a call returns.
        environments: conversation -> its OwnedEnvironment.
        loaded: "tools" and "environment" -> the imported code; empty before the import.
    """

    code: Code
    call_seconds: float
    call_bytes: int
    environments: dict[int, OwnedEnvironment]
    loaded: dict


# Only a worker process has it, see start
_state: _State


def start(code: Code, call_seconds: float, call_bytes: int):
    """Begin a worker process: remember its settings, and discard what the user's code prints.

    Args:
        code: The user's tools and environment.
        call_seconds: Longest time of one call.
        call_bytes: Most bytes of the text that a call returns.
    """
    global _state
    _state = _State(code, call_seconds, call_bytes, {}, {})
    # Discard what the user's code prints: it would appear among the lines of the run
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(function: Callable, *args):
    """Return the result of function(*args).

    An error is returned as a ValueError, which the main process can read.
    """
    note_call(IMPORT)
    try:
        if not _state.loaded:
            with watched(IMPORT_SECONDS):
                _load()
        note_call(0)
        return function(*args)
    except (Exception, SystemExit) as error:
        return ValueError(str(error))


def reset(key: int, columns: dict, seed: int, count: int) -> str | None:
    """Make the environment of a conversation, and return the text of its reset, or None.

    Raises:
        ValueError: If the class or its reset raises, if reset does not take the columns, if it
            returns neither a text nor None, or if its text exceeds call_bytes.
    """
    _seed(seed, count)
    file = _file()
    environment, error, _ = _limited(0, _state.loaded["environment"])
    if error is None:
        _state.environments[key] = OwnedEnvironment(key, environment)
        _require_columns(environment.reset, columns, file)
        text, error, _ = _limited(0, environment.reset, **columns)
    if error is not None:
        raise ValueError(f"reset failed: {with_line(error, file)}")
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"reset returned {_cut(repr(text))}; return a text, or None ({file.name})")
    text, size = _clean(text)
    if size > _state.call_bytes:
        raise ValueError(TOO_LONG.format("reset", size, _state.call_bytes))
    return text


def _file() -> Path:
    """Return the file of the environment. A worker without one gets no reset and no reward."""
    source = _state.code.environment
    assert source is not None
    return source.file


def _require_columns(function, columns, file):
    try:
        inspect.signature(function).bind(**columns)
    except TypeError as error:
        raise ValueError(
            f"reset of {file.name} gets every column ({', '.join(columns)}): {error}; "
            "take those that it does not read as **columns"
        ) from error


def turn(key: int, calls: Sequence[tuple[str, dict]], seed: int, count: int) -> ActionResult:
    """Make the calls of a turn, and return ActionResult with each call's text, in order."""
    _seed(seed, count)
    functions = dict(_state.loaded["tools"])
    if key in _state.environments:
        environment = _state.environments[key].environment
        methods = public_methods(type(environment))
        functions |= {name: getattr(environment, name) for name in methods}
    texts, errors, seconds = [], 0, 0.0
    for place, (name, arguments) in enumerate(calls):
        text, error, spent = _limited(place, _answer, functions, name, arguments)
        text, size = _clean(text if error is None else _error_text(error))
        errors, seconds = errors + (error is not None), seconds + spent
        if size > _state.call_bytes:
            failure = TOO_LONG.format(name, size, _state.call_bytes)
            return ActionResult([], errors + 1, seconds, failure=failure)
        texts.append(text)
    return ActionResult(texts, errors, seconds)


def step(key: int, text: str, seed: int, count: int) -> ActionResult:
    """Call step with the model's text, and return ActionResult with the environment's answer."""
    _seed(seed, count)
    value, error, seconds = _limited(0, _state.environments[key].environment.step, text)
    if error is None and value is None:
        return ActionResult([], 0, seconds, ended=True)
    misformed = None
    if error is None and not isinstance(value, str):
        misformed = f"step returned {type(value).__name__}; return a text, or None to end"
        error = TypeError(misformed)
    text, size = _clean(value if error is None else _error_text(error))
    if size > _state.call_bytes:
        return ActionResult(
            [], 1, seconds, failure=TOO_LONG.format("step", size, _state.call_bytes)
        )
    return ActionResult([text], int(error is not None), seconds, misformed=misformed)


def reward(key: int, seed: int, count: int) -> PaidReward:
    """Return the PaidReward of a conversation, and forget its environment."""
    _seed(seed, count)
    own = _state.environments.pop(key)
    return PaidReward(own.number, _reward_of(own.environment))


def _reward_of(environment):
    file = _file()
    value, error, _ = _limited(0, environment.get_reward)
    if error is not None:
        return f"get_reward failed: {with_line(error, file)}"
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return f"get_reward returned {_cut(repr(value))}; return a finite number ({file.name})"
    return float(value)


def forget(key: int | None = None):
    """Forget the environment of a conversation, or of all conversations without a key."""
    if key is None:
        _state.environments.clear()
    else:
        _state.environments.pop(key, None)


def _load():
    tools = [import_unchanged(*source) for source in _state.code.tools]
    made = _state.code.environment
    _state.loaded.update(
        tools={tool.__name__: tool for tool in tools},
        environment=None if made is None else import_unchanged(*made),
    )


def _limited(call, function, *args, **columns):
    """Call the user's code. If it exceeds the limit of time, this process ends.

    Returns:
        (what it returned, what it raised, seconds).
    """
    note_call(call)
    value, raised, begun = None, None, time.monotonic()
    try:
        with watched(_state.call_seconds):
            value = function(*args, **columns)
    # Also a KeyboardInterrupt of the user's code: in the main process it would look like Ctrl-C
    except BaseException as error:
        raised = error
    return value, raised, time.monotonic() - begun


class _Refused(Exception):
    """Error of a call that did not reach the user's code."""


def _answer(functions, name, arguments):
    if name not in functions:
        known = ", ".join(functions)
        raise _Refused(f"there is no tool {name}; there are: {known}")
    signature = inspect.signature(functions[name])
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise _Refused(f"{name}{signature}: {error}") from error
    return str(functions[name](**arguments))


def _error_text(error):
    if isinstance(error, _Refused):
        return _cut(f"Error: {error}")
    if isinstance(error, ErrorForModel):
        return str(error)
    kind = type(error).__name__
    try:
        return _cut(f"Error: {kind}: {error}")
    # The __str__ of an error may raise
    except Exception:
        return f"Error: {kind}"


def _cut(text):
    return text[:ERROR_CHARS]


def _clean(text):
    """Return the text as UTF-8 can encode it, and its number of bytes.

    Half of a surrogate pair, which has no UTF-8, becomes a question mark. A text far beyond the
    limit is not encoded, because this might take too much memory: the result is "", and its
    characters count as bytes.
    """
    if len(text) > 4 * _state.call_bytes:
        return "", len(text)
    data = text.encode("utf-8", "replace")
    return data.decode(), len(data)


def _seed(seed, count):
    """Seed the random numbers of a job, so that they are the same in a repeated run.

    They do not depend on what else the worker does. The seed is for `random` and, if imported,
    numpy.random.
    """
    number = int.from_bytes(hashlib.blake2b(f"{seed} {count}".encode(), digest_size=4).digest())
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)
