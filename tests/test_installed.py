"""A Python that lacks what the project needs: one message, from every program."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata

import pytest

from deepseek_jax import installed
from deepseek_jax.programs import PACKAGE, PROGRAMS, program
from tests.quick import others_slow

ROOT = PACKAGE.parent
STARTS = {name: [str(program(name))] for name in PROGRAMS} | {"all": ["-m", "deepseek_jax"]}


@pytest.mark.parametrize("name", others_slow(STARTS, "train", "all"))
def test_a_python_without_packages_says_which_command_installs_them(name):
    """Oracle: this Python without site-packages: status 2, one message, the command with its own path."""
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-S", *STARTS[name]]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "which lacks absl, etils," in done.stderr
    pip = f"{sys.executable} -m pip install -r {ROOT / 'requirements.txt'}"
    assert pip in done.stderr


def test_an_old_python_is_named():
    """Oracle: the words a reader needs; the version that pyproject.toml requires."""
    assert (
        f'requires-python = ">={installed.OLDEST[0]}.{installed.OLDEST[1]}"'
        in (ROOT / "pyproject.toml").read_text()
    )
    found = installed.remedy_for((3, 10), ())
    assert (
        found
        == f"Python 3.11 or later is needed, and this is Python 3.10, {sys.executable}; "
        + ("start a later one")
    )
    assert installed.remedy_for((3, 11), installed.PACKAGES) is None


def test_what_runs_before_the_message_is_read_by_old_pythons():
    """Oracle: the grammar of Python 3.7."""
    files = [PACKAGE / f"{name}.py" for name in ("__init__", "__main__", "installed", "lazy")]
    for path in [*files, *map(program, PROGRAMS)]:
        ast.parse(path.read_text(), feature_version=(3, 7))


def test_the_packages_are_those_of_the_requirements():
    """Oracle: requirements.txt, whose names differ from those of the packages."""
    required = re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    names = {name.replace("-", "_") for name in required}
    other = {"absl": "absl_py", "orbax": "orbax_checkpoint"}
    assert {other.get(name, name) for name in installed.PACKAGES} <= names


def test_what_chat_templates_need_is_required():
    """Oracle: the metadata of transformers, which leaves it to an extra; PyTorch would bring it by chance."""
    extra = [r for r in metadata.requires("transformers") if 'extra == "chat-template"' in r]
    assert extra
    required = (ROOT / "requirements.txt").read_text()
    for requirement in extra:
        assert re.search(f"^{re.escape(requirement.split(';')[0])}\\b", required, re.MULTILINE)


def test_every_program_checks_before_it_imports_anything_else():
    """Oracle: the statements of each file: the standard library, the path, the check."""
    for path in map(program, PROGRAMS):
        imported = []
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Expr) and "check_installed()" in ast.unparse(node):
                break
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module] if isinstance(node, ast.ImportFrom) else []
        others = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
        assert others == {"deepseek_jax"} and "deepseek_jax.installed" in imported, path
