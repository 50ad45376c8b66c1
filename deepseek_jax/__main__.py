"""The command deepseek-jax (python -m deepseek_jax): run the program that its first argument names.

The program gets the other arguments. `deepseek-jax NAME` does what `python launch/NAME.py` does in
a checkout.

Tests: tests/test_programs.py.
"""

import ast
import runpy
import sys

from deepseek_jax.installed import USER_ERROR, check_installed

check_installed()

from deepseek_jax.errors import suggest
from deepseek_jax.programs import PROGRAMS, program


def main() -> None:
    """Run the program that the command line names, or list all programs."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name in PROGRAMS:
        path = str(program(name))
        sys.argv = [path, *arguments]
        # As the main module, because --help prints the main module's docstring
        runpy.run_path(path, run_name="__main__")
    else:
        print(f"error: {name} is not a program; {suggest(name, PROGRAMS)}", file=sys.stderr)
        sys.exit(USER_ERROR)


def usage() -> str:
    """Return the text of --help: what each program does, in a line."""
    lines = []
    for name in PROGRAMS:
        doc = ast.get_docstring(ast.parse(program(name).read_text()))
        assert doc is not None, f"{name} has no docstring"
        lines.append(f"  {name:<10}{doc.splitlines()[0]}")
    head = (
        "deepseek-jax PROGRAM [--FLAG=VALUE ...]; deepseek-jax PROGRAM --help lists its flags\n\n"
    )
    return head + "\n".join(lines)


if __name__ == "__main__":
    main()
