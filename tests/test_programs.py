"""Where the programs are, the names of shipped experiments, and the command that starts a program."""

import runpy
import subprocess
import sys

import pytest

import deepseek_jax
from deepseek_jax import __main__, programs
from launch.config_file import load_config
from tests.experiments import EXPERIMENTS

LAUNCH = programs.PACKAGE.parent / "launch"


def test_every_program_of_launch_is_known():
    """Oracle: the files there with a main, but those of an engine."""
    files = {path.stem for path in LAUNCH.glob("*.py") if "__main__" in path.read_text()}
    assert files == set(programs.PROGRAMS)
    assert programs.program("train") == LAUNCH / "train.py"


def test_a_wheel_has_the_programs_within_the_package(tmp_path, monkeypatch):
    """Oracle: by hand: its folder, its command, and a file there that counts as ours."""
    assert programs.command("sweep") == "python launch/sweep.py"
    monkeypatch.setattr(programs, "PACKAGE", tmp_path)
    monkeypatch.setattr(programs, "SHIPPED", tmp_path / "shipped")
    assert programs.home() == tmp_path.parent
    (tmp_path / "shipped").mkdir()
    assert programs.program("plan") == tmp_path / "shipped" / "launch" / "plan.py"
    assert programs.command("sweep") == "deepseek-jax sweep"
    assert programs.is_ours(tmp_path / "shipped" / "configs" / "r1.py")
    assert not programs.is_ours(tmp_path.parent / "configs" / "r1.py")


def test_a_shipped_experiment_has_a_name():
    """Oracle: its path; an argument goes with both."""
    path = LAUNCH.parent / "configs" / "grpo_small.py"
    assert load_config("grpo_small:seed=1") == load_config(f"{path}:seed=1")
    assert programs.given_file("seeds", "--sweep") == str(path.parent / "sweeps" / "seeds.py")
    assert programs.given_file("./seeds.py", "--sweep") == "./seeds.py"


@pytest.mark.parametrize(
    "value, flag, words",
    [
        (
            "grpo_smal",
            "--config",
            r"--config=grpo_smal is .*did you mean grpo_small\? allowed: .*r1",
        ),
        ("seds", "--sweep", r"--sweep=seds is .*did you mean seeds\? allowed: .*optimizers"),
        # What experiments share is none
        ("models", "--config", "--config=models is neither the path of a Python file nor a name"),
    ],
)
def test_an_unknown_name_suggests_those_that_there_are(value, flag, words):
    """Oracle: by hand."""
    with pytest.raises(ValueError, match=words):
        programs.given_file(value, flag)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_command_lists_the_programs_in_a_line_each(arguments, monkeypatch, capsys):
    """Oracle: the programs in their order, and the first line of a docstring."""
    monkeypatch.setattr(sys, "argv", ["deepseek-jax", *arguments])
    __main__.main()
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*programs.PROGRAMS, "list"]
    assert lines[0].endswith(" Run one experiment: flags -> config -> mesh -> recipe.")


def test_the_command_lists_the_experiments_without_jax():
    """Oracle: the files of configs/ that define an experiment, and the first lines of their docstrings; the
    modules of a fresh interpreter.
    """
    program = "import sys; from deepseek_jax.__main__ import main; main(); print(*sys.modules)"
    command = [sys.executable, "-c", program, "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=LAUNCH.parent)
    _, _, *lines, modules = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {path.stem for path in EXPERIMENTS}
    docs = [path.read_text().removeprefix('"""').splitlines()[0] for path in EXPERIMENTS]
    assert [line.split(maxsplit=1)[1] for line in lines] == docs
    assert not {"jax", "ml_collections", "configs"} & set(modules.split())


def test_the_command_says_its_version(monkeypatch, capsys):
    """Oracle: the package's own."""
    monkeypatch.setattr(sys, "argv", ["deepseek-jax", "--version"])
    __main__.main()
    assert capsys.readouterr().out == f"deepseek_jax {deepseek_jax.__version__}\n"


def test_an_unknown_program_is_one_message(monkeypatch, capsys):
    """Oracle: by hand: exit status 2 and the nearest name."""
    monkeypatch.setattr(sys, "argv", ["deepseek-jax", "trian", "--config=r1"])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
    assert capsys.readouterr().err.startswith("error: trian is not a program; did you mean train?")


def test_the_command_runs_a_program_as_the_main_module_with_its_flags(monkeypatch):
    """Oracle: what runpy is asked for, and the command line that the program then reads."""
    ran = []
    monkeypatch.setattr(runpy, "run_path", lambda *given, **named: ran.append((given, named)))
    monkeypatch.setattr(sys, "argv", ["deepseek-jax", "convert", "--from=a", "--to=b"])
    __main__.main()
    path = str(LAUNCH / "convert.py")
    assert ran == [((path,), {"run_name": "__main__"})]
    assert sys.argv == [path, "--from=a", "--to=b"]
