"""A tool: Python, in the sandbox of rewards.monty."""

import functools

from deepseek_jax.rewards.monty import MontySandbox
from deepseek_jax.rewards.sandbox import SandboxError

# Below call_seconds, so that a program that does not end costs its call alone
SECONDS = 5.0


@functools.cache
def _sandbox():
    # One for each worker
    return MontySandbox()


def python(code: str) -> str:
    """Run a Python program and read what it prints.

    Args:
        code: The program. Print what you want to know.
    """
    try:
        output, failure = _sandbox().run(code, "", SECONDS)
    except SandboxError as error:
        return f"Error: {error}"
    return output if failure is None else f"{output}Error: {failure}"
