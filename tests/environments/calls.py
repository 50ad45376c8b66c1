"""Conversations of the tests of tests/environments/."""

import contextlib
import multiprocessing
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from deepseek_jax.environments import Environments, schemas
from deepseek_jax.rewards.workers import WorkerPool

FILES = Path(__file__).parent / "files"
TOOLS, ENVIRONMENTS = FILES / "own_tools.py", FILES / "own_environments.py"
READER = WorkerPool(schemas._described, int, num_workers=1, wall_limit_seconds=60)


class Call(NamedTuple):
    name: str
    arguments: dict


def call(name, **arguments):
    return Call(name, arguments)


def environments(*tools, environment=None, workers=1, **limits):
    """Environments with tools of own_tools.py and an environment of own_environments.py."""
    name = environment and f"{ENVIRONMENTS}:{environment}"
    with one_reader():
        return Environments([f"{TOOLS}:{tool}" for tool in tools], name, workers=workers, **limits)


def children():
    """The processes of this one before a test starts its own, with the one that reads the schemas."""
    with environments(environment="Counter"):
        return set(multiprocessing.active_children())


def one_reader():
    """In the block one process reads all schemas: each would import transformers, for a second."""
    return mock.patch.object(schemas, "WorkerPool", lambda *_, **__: contextlib.nullcontext(READER))


@contextlib.contextmanager
def begun(*tools, count=1, columns=None, **more):
    """environments(), with `count` conversations, whose seeds are 0, 1, and so on."""
    with environments(*tools, **more) as made:
        made.begin({key: (columns or {}, key) for key in range(count)})
        yield made


def act(made, key, *calls):
    """ActionResult of one turn, or of a step."""
    made.act(key, calls[0] if made.takes_steps else list(calls))
    return made.acted(key)


def scored(made, key):
    made.end(key)
    paid = made.reward(key)
    return paid and paid.reward
