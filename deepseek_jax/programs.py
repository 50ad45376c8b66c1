"""Paths of the programs (launch/) and of the shipped experiments (configs/).

A checkout has them next to the package. A wheel has them in deepseek_jax/shipped, so that
site-packages gets no other name. Each program puts the folder that has them on sys.path: in both,
programs can `import configs` and `import launch`.
"""

import ast
import difflib
import os
import re
import traceback
from pathlib import Path

from deepseek_jax.errors import suggest
from deepseek_jax.files import expanded

PACKAGE = Path(__file__).resolve().parent
SHIPPED = PACKAGE / "shipped"
# In the order in which --help lists them
PROGRAMS = (
    "train",
    "chat",
    "sweep",
    "evaluate",
    "generate",
    "plan",
    "convert",
    "compare",
    "doctor",
)
# Flag that takes a Python file -> folder of the shipped files, and the function that each defines
FILES = {"--config": ("configs", "get_config"), "--sweep": ("configs/sweeps", "sweep")}


def home() -> Path:
    """Return the folder that has launch/ and configs/."""
    return SHIPPED if SHIPPED.is_dir() else PACKAGE.parent


def program(name: str) -> Path:
    """Return the file of a program of PROGRAMS."""
    return home() / "launch" / f"{name}.py"


def command(name: str) -> str:
    """Return what a user types to start a program, without its flags."""
    return f"deepseek-jax {name}" if home() == SHIPPED else f"python launch/{name}.py"


def is_name(value: str) -> bool:
    """Return whether a flag's value names a shipped file rather than a path."""
    return re.fullmatch(r"\w+", value) is not None


def given_file(value: str, flag: str) -> str:
    """Return the path of the Python file that the value of a flag means.

    Args:
        value: A path, or the name of a shipped file, as in --config=grpo_small.
        flag: One of FILES.

    Raises:
        ValueError: No shipped file has this name; or as files.expanded does.
    """
    if not is_name(value):
        return expanded(value)
    names = [file.stem for file in shipped_files(flag)]
    if value not in names:
        raise ValueError(
            f"{flag}={value} is neither the path of a Python file nor a name; {suggest(value, names)}"
        )
    return str(home() / FILES[flag][0] / f"{value}.py")


def shipped_files(flag: str) -> list[Path]:
    """Return the shipped files that a flag of FILES takes."""
    folder, function = FILES[flag]
    files = sorted((home() / folder).glob("*.py"))
    return [file for file in files if f"def {function}(" in file.read_text()]


def summary(file: Path) -> str:
    """Return the first line of a Python file's docstring, without importing the file."""
    doc = ast.get_docstring(ast.parse(file.read_text()))
    assert doc is not None, f"{file} has no docstring"
    return doc.splitlines()[0]


def nearest_file(path: str, flag: str) -> str:
    """Suggest a file in place of a path that does not exist.

    The candidates are the Python files in the folder of `path`, and the shipped ones.

    Args:
        path: The value of the flag.
        flag: One of FILES.

    Returns:
        The beginning of a remedy, as in "did you mean configs/r1.py? ", or "" if no name is near.
    """
    # glob finds nothing in a folder that is not there; a folder or a pipe is no file
    neighbours = sorted(file for file in Path(path).parent.glob("*.py") if file.is_file())
    # A file in the folder of `path` wins over a shipped one of the same name
    files = {file.stem: file for file in (*shipped_files(flag), *neighbours)}
    near_names = difflib.get_close_matches(Path(path).stem, files, n=1)
    if not near_names:
        return ""
    nearest = files[near_names[0]]
    short_path = nearest.relative_to(Path.cwd()) if nearest.is_relative_to(Path.cwd()) else nearest
    return f"did you mean {short_path}? "


def is_ours(file: str | os.PathLike) -> bool:
    """Return whether a file is one of this project's."""
    folders = (PACKAGE, home() / "configs", home() / "launch")
    return any(Path(file).resolve().is_relative_to(folder) for folder in folders)


def is_mistake(error: BaseException) -> bool:
    """Return whether an error is a user's mistake: a ValueError that this project raised.

    Its message says everything, so no traceback is needed.
    """
    *_, (last_frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, ValueError) and is_ours(last_frame.f_code.co_filename)
