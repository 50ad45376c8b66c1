"""The functions that the programs share."""

import errno
import subprocess
import sys

import pytest

from deepseek_jax import recipes
from deepseek_jax.recipes.job import Job
from launch import common
from tests.launch.test_train import RECIPE, ROOT


def test_a_recipe_is_found_by_the_name_of_its_module(tmp_path, monkeypatch):
    """Oracle: the module's own class and settings; a module without JOB is no recipe."""
    (tmp_path / "polling.py").write_text(RECIPE)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    recipe = common.find_recipe("polling")
    assert recipe.__name__ == "deepseek_jax.recipes.polling" and recipe.SETTINGS is recipe.Polling
    for name in ("blocks", None, ""):
        with pytest.raises(ValueError, match=r"is not a recipe; .*allowed: .*polling"):
            common.find_recipe(name)


def test_every_recipe_names_the_settings_of_its_config():
    """Oracle: the nine recipes, by hand; each has a JOB and a dataclass with a field recipe."""
    names = "distill evaluate generate grpo judge pretrain r1 reward_model sft".split()
    with pytest.raises(ValueError, match=f"allowed: {', '.join(names)}$"):
        common.find_recipe("")
    for name in names:
        recipe = common.find_recipe(name)
        assert issubclass(recipe.JOB, Job) and "recipe" in recipe.SETTINGS.__dataclass_fields__


PROGRAMS = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", PROGRAMS)
def test_launch_is_imported_without_jax(name):
    """Oracle: sys.modules of a fresh interpreter: a reward's worker imports the program again, and
    launch/plan.py and compare.py set the environment before jax reads it.
    """
    program = f"import sys, launch.{name}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120).returncode == 0


@pytest.mark.parametrize("name, flag", [("train", "--workdir"), ("sweep", "--config")])
def test_a_programs_help_lists_the_flags_that_it_shares(name, flag):
    """Oracle: the flag's name at the start of a line; plain --help is of the program's own flags alone."""
    command = [sys.executable, ROOT / "launch" / f"{name}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"\n  {flag}: " in done.stdout and "--verbosity" not in done.stdout


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
