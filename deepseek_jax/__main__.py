"""The command deepseek-jax (python -m deepseek_jax): run the program that its first argument names.

The program gets the other arguments. `deepseek-jax NAME` does what `python launch/NAME.py` does in
a checkout. `deepseek-jax list` lists the shipped experiments, without importing them or jax.

Tests: tests/test_programs.py.
"""

import runpy
import sys

from deepseek_jax.installed import USER_ERROR, check_installed

check_installed()

from deepseek_jax import __version__
from deepseek_jax.errors import suggest
from deepseek_jax.programs import PROGRAMS, program, shipped_files, summary

LIST = "list"


def main() -> None:
    """Run the program that the command line names, or list programs or experiments."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name == "--version":
        print(f"deepseek_jax {__version__}")
    elif name == LIST:
        print(experiments())
    elif name in PROGRAMS:
        path = str(program(name))
        sys.argv = [path, *arguments]
        # As the main module, because --help prints the main module's docstring
        runpy.run_path(path, run_name="__main__")
    else:
        print(
            f"error: {name} is not a program; {suggest(name, (*PROGRAMS, LIST))}", file=sys.stderr
        )
        sys.exit(USER_ERROR)


def usage() -> str:
    """Return the text of --help: what each program does, in a line."""
    lines = [f"  {name:<10}{summary(program(name))}" for name in PROGRAMS]
    lines.append(f"  {LIST:<10}List the experiments that --config takes.")
    head = (
        "deepseek-jax PROGRAM [--FLAG=VALUE ...]; deepseek-jax PROGRAM --help lists its flags\n\n"
    )
    return head + "\n".join(lines)


def experiments() -> str:
    """Return the text of `deepseek-jax list`: what each shipped experiment is, in a line."""
    files = shipped_files("--config")
    width = max(len(file.stem) for file in files) + 2
    lines = [f"  {file.stem:<{width}}{summary(file)}" for file in files]
    head = (
        "deepseek-jax train EXPERIMENT runs one, and deepseek-jax generate one that begins so\n\n"
    )
    return head + "\n".join(lines)


if __name__ == "__main__":
    main()
