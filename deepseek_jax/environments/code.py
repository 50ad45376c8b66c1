"""The user's functions and class, as a config names them.

Tests: tests/environments/test_mistakes.py.
"""

import inspect
from pathlib import Path
from typing import NamedTuple

from deepseek_jax.named_code import BRING, code_file, digest_of


class ErrorForModel(Exception):
    """Error of a tool that fails: the model reads its text unchanged."""


class Source(NamedTuple):
    """Code that a config names, as named_code.import_unchanged takes it."""

    file: Path
    name: str
    digest: str


class Code(NamedTuple):
    """The user's tools and environment, before their import.

    Attributes:
        tools: Functions.
        environment: A class, or None.
    """

    tools: tuple[Source, ...]
    environment: Source | None


def source_of(name: str) -> Source:
    """Return the Source of a name.

    Raises:
        ValueError: If the name is not one of code, or if there is no such file.
    """
    digest = digest_of(name)
    if digest is None:
        raise ValueError(f"{name!r} names no code; {BRING}")
    return Source(code_file(name), name, digest)


def public_methods(environment: type) -> list[str]:
    """List the names of the methods that are tools, in the order of their definition."""
    functions = dict(inspect.getmembers(environment, inspect.isfunction))
    names = dict.fromkeys(name for base in reversed(environment.__mro__) for name in vars(base))
    return [
        name
        for name in names
        if name in functions and name not in ("reset", "get_reward") and not name.startswith("_")
    ]
