"""The tool that runs Python: what the model reads of a program that fails, and what counts as an error."""

import importlib
import importlib.util

import pytest

from deepseek_jax.environments import Environments, python
from tests.environments.calls import act, call

pytest.importorskip("pydantic_monty")


@pytest.fixture(scope="module")
def running():
    with Environments([f"{python.__name__}:python"], None, workers=1) as made:
        made.begin({0: ({}, 0)})
        yield made


@pytest.mark.parametrize(
    "code, text",
    [
        ("print(1)\nprint(1 / 0)", "1\nError: ZeroDivisionError: division by zero"),
        ("print(", "Error: SyntaxError: unexpected EOF while parsing"),
        ("import numpy", "Error: ModuleNotFoundError: No module named 'numpy'"),
        ("import selectors", "Error: ModuleNotFoundError: No module named 'selectors'"),
        ("raise ValueError('x' * 900)", "Error: ValueError: " + "x" * 488),
        ("'a' * 10**10", "Error: MemoryError: memory limit exceeded"),
        ("exit(3)", "Error: SystemExit: 3"),
    ],
)
def test_the_model_reads_its_programs_own_error_and_it_counts(running, code, text):
    """Oracle: the last lines of Python's tracebacks, by hand; none tells it to install something."""
    acted = act(running, 0, call("python", code=code), call("python", code="print(2 + 3)"))
    assert acted.texts == [text, "5\n"] and acted.errors == 1


def test_a_program_that_does_not_end_is_an_error_without_a_clock_in_it(running):
    """Oracle: the text, the same in a repeated run."""
    acted = act(running, 0, call("python", code="while True: pass"))
    assert acted.texts == ["Error: TimeoutError: feed time limit exceeded"] and acted.errors == 1


def test_a_sandbox_that_is_not_installed_is_told_to_the_person(monkeypatch):
    """Oracle: the import fails, which --check and a run say before anything else."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install pydantic-monty"):
        importlib.reload(python)
