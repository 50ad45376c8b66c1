"""Read the schemas of the user's tools, and raise for each mistake of their form before a run.

A separate process reads them and ends, because the transformers library is large.

Tests: tests/environments/test_mistakes.py.
"""

import inspect
import sys
from typing import NamedTuple

from deepseek_jax.environments.code import Code, public_methods
from deepseek_jax.environments.worker import IMPORT_SECONDS
from deepseek_jax.errors import at
from deepseek_jax.named_code import import_unchanged, with_line
from deepseek_jax.rewards.workers import WorkerPool

FORM = (
    "give it type hints and a docstring: what it does, and Args: with a line NAME: MEANING for each"
)


class Description(NamedTuple):
    """Description of the user's code.

    Attributes:
        schemas: Schemas of the tools, then of the environment's methods.
        takes_steps: True if each text of the model is a call of step.
        reward_name: The environment's name if it has get_reward, else None.
    """

    schemas: list[dict]
    takes_steps: bool
    reward_name: str | None


def describe(code: Code) -> Description:
    """Return the Description of the user's code.

    Raises:
        ValueError: For each mistake in the code's form. The message has the argument's name.
    """
    with WorkerPool(_described, int, num_workers=1, wall_limit_seconds=IMPORT_SECONDS) as pool:
        schemas: list[dict] = []
        names: dict[str, str] = {}
        for source in code.tools:
            with at("tools"):
                _add(pool.call(_tool, source), source.name, schemas, names)
        if code.environment is None:
            return Description(schemas, False, None)
        with at("environment"):
            description = pool.call(_environment, code.environment, bool(code.tools))
            for schema in description.schemas:
                _add(schema, code.environment.name, schemas, names)
        return description._replace(schemas=schemas)


def _add(schema, source, schemas, names):
    name = schema["function"]["name"]
    if name in names:
        raise ValueError(
            f"{source} has a tool {name}, and so has {names[name]}; rename one of the two"
        )
    names[name] = source
    schemas.append(schema)


def _described(function, source, *arguments):
    """Return what the function returns, or its error as a ValueError.

    A process that has not imported the user's code can read a ValueError, but perhaps not the
    error.
    """
    try:
        return function(import_unchanged(*source), source, *arguments)
    except (Exception, SystemExit) as error:
        return ValueError(str(error))


def _tool(function, source):
    if not inspect.isfunction(function):
        raise ValueError(f"{source.name} is no function; name a function defined with def")
    return _schema(function, source.name)


def _schema(function, name):
    from transformers.utils import chat_template_utils

    # Otherwise it would import PyTorch, which takes seconds, to recognise tensors among the hints
    chat_template_utils.is_torch_available = lambda: "torch" in sys.modules
    _require_not_async(function, name)
    try:
        schema = chat_template_utils.get_json_schema(function)
    # A hint with a name that does not exist raises NameError
    except Exception as error:
        raise ValueError(f"{name}: {error}; {FORM}") from error
    try:
        # The model will call it like this: by the names that it reads
        inspect.signature(function).bind(**schema["function"]["parameters"]["properties"])
    except TypeError as error:
        raise ValueError(
            f"{name}: every call fails: {error}; let it take each argument by name, without * or /"
        ) from error
    return schema


def _require_not_async(function, name):
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(f"{name} is async, which is not supported; define it without async")


def _environment(environment, source, has_tools):
    """Return the Description of an environment, without the tools.

    Args:
        environment: The class.
        source: Its Source.
        has_tools: True if there are tools in addition to the environment.
    """
    _require_class(environment, source)
    names = public_methods(environment)
    if not names and not has_tools:
        raise ValueError(
            f"{source.name} has no public method beside reset and get_reward; define tools, or step(text)"
        )
    try:
        instance = environment()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{source.name} cannot be made: {with_line(error, source.file)}"
        ) from error
    reward_name = environment.__name__ if hasattr(environment, "get_reward") else None
    if names != ["step"] or has_tools:
        schemas = [_schema(getattr(instance, name), f"{source.name}.{name}") for name in names]
        return Description(schemas, False, reward_name)
    try:
        inspect.signature(instance.step).bind("text")
    except TypeError as error:
        raise ValueError(f"{source.name}.step: {error}; define step(self, text)") from error
    return Description([], True, reward_name)


def _require_class(environment, source):
    if not inspect.isclass(environment):
        raise ValueError(f"{source.name} is no class; name a class whose methods are the tools")
    try:
        inspect.signature(environment).bind()
    except TypeError as error:
        raise ValueError(f"{source.name} takes arguments: {error}; give it none") from error
    functions = dict(inspect.getmembers(environment, inspect.isfunction))
    if "reset" not in functions:
        raise ValueError(f"{source.name} has no method reset; define reset(self, **columns)")
    for name, function in functions.items():
        _require_not_async(function, f"{source.name}.{name}")
