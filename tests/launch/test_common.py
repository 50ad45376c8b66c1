"""The functions that the programs share."""

import errno
import subprocess
import sys

import pytest

from launch import common
from tests.launch.test_train import ROOT

# What the doctor computes is imported once it computes
COMPUTES = "__init__", "machine_checks"
PROGRAMS = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if path.stem not in COMPUTES)
# Imports one after another, and says which brings jax
IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"launch.{name}")
    assert "jax" not in sys.modules, name
print(len(sys.argv))
"""


def test_launch_is_imported_without_jax():
    """Oracle: sys.modules of a fresh interpreter: a wrong flag does not wait for jax, and launch/plan.py and
    compare.py set the environment before jax reads it.
    """
    command = [sys.executable, "-c", IMPORTS, *PROGRAMS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{1 + len(PROGRAMS)}\n" and len(PROGRAMS) > 8, done.stderr


@pytest.mark.parametrize("name, flag", [("train", "--workdir"), ("sweep", "--config")])
def test_a_programs_help_lists_the_flags_that_it_shares(name, flag):
    """Oracle: the flag's name at the start of a line; plain --help is of the program's own flags alone."""
    command = [sys.executable, ROOT / "launch" / f"{name}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"\n  {flag}: " in done.stdout and "--verbosity" not in done.stdout


@pytest.mark.parametrize(
    "path, seed, name",
    [
        ("configs/grpo_small.py", 0, "grpo_small"),
        ("configs/grpo_small.py", None, "grpo_small"),
        ("configs/grpo_small.py", 3, "grpo_small_seed3"),
        ("configs/grpo_small.py:runlocal", 3, "grpo_small_runlocal_seed3"),
        ("configs/grpo_small.py:runlocal,seed=3", 3, "grpo_small_runlocal,seed=3"),
        ("/abs/x.py:a/../b c", 0, "x_a_.._b_c"),
    ],
)
def test_the_default_name_says_config_argument_and_seed_once(path, seed, name):
    """Oracle: by hand; no part of the argument can leave runs/."""
    assert common.default_workdir(path, seed).parts == ("runs", name)


def chained(first, *causes):
    """An error that was raised from others, the last of them the first to happen."""
    error = first
    for cause in causes:
        error.__cause__ = cause
        error = cause
    return first


FULL = OSError(errno.ENOSPC, "No space left on device", "w/metrics.jsonl")
REFUSED = [
    (FULL, "w/metrics.jsonl", "free space on that disk"),
    (OSError(errno.EROFS, "Read-only file system", "w/x"), "w/x", "make that file system writable"),
    (PermissionError(errno.EACCES, "Permission denied", "d"), "'d'", "the right to read and write"),
    # As tensorstore says it
    (ValueError("RESOURCE_EXHAUSTED: No space left on device [28]"), "[28]", "free space on that"),
    (chained(RuntimeError("a save failed"), KeyError("x"), FULL), "w/metrics.jsonl", "free space"),
]


@pytest.mark.parametrize("error, place, remedy", REFUSED)
def test_a_disk_that_is_full_or_closed_is_one_message_with_the_remedy(error, place, remedy, capsys):
    """Oracle: by hand: status 2, the path and the remedy, whatever libraries make of the system's error."""
    with pytest.raises(SystemExit) as end, common.one_message():
        raise error
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("error: ") == 1
    assert place in said and remedy in said and "start the same command again" in said


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file"), KeyError("x"), OSError("?")]
)
def test_other_errors_keep_their_traceback(error):
    """Oracle: the very error."""
    with pytest.raises(type(error)) as raised, common.one_message():
        raise error
    assert raised.value is error
