"""A tool that runs Python, in the sandbox of rewards.monty."""

import contextlib
import functools
import importlib.util

from deepseek_jax.environments.code import ErrorForModel
from deepseek_jax.rewards.monty import MontySandbox
from deepseek_jax.rewards.sandbox import SandboxError

# Raised before a run begins, because no model can install it
if importlib.util.find_spec("pydantic_monty") is None:
    raise ImportError("the sandbox pydantic_monty is not installed; pip install pydantic-monty")

# Below call_seconds, so that an endless program costs only its call
SECONDS = 5.0
# Most characters of a program's error that the model reads
ERROR_CHARS = 500


@functools.cache
def _sandbox():
    # One for each worker
    return MontySandbox()


def python(code: str) -> str:
    """Run a Python program and read what it prints.

    Args:
        code: The program. Print what you want to know.
    """
    sandbox, output = _sandbox(), ""
    # If a program fails, or needs what monty lacks, `said` has the message
    with contextlib.suppress(SandboxError):
        output, failure = sandbox.run(code, "", SECONDS)
        if failure is None:
            return output
    said = sandbox.said or "the sandbox ended"
    raise ErrorForModel(f"{output}Error: {said[:ERROR_CHARS]}")
