"""Check that this Python is new enough and has the packages that every program needs.

Programs import this file before everything else, even in a Python that is too old. So it imports
only the standard library, and is written for Python 3.7.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

USER_ERROR = 2
OLDEST = (3, 11)
# The packages of requirements.txt that every program imports
PACKAGES = ("absl", "etils", "flax", "jax", "ml_collections", "numpy", "optax", "orbax", "rich")
REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"


def check_installed():
    """End the program with a message and exit status 2 if Python is too old or lacks a package."""
    remedy = remedy_for(sys.version_info[:2], PACKAGES)
    if remedy is not None:
        print(f"error: {remedy}", file=sys.stderr)
        sys.exit(USER_ERROR)


def remedy_for(version, packages):
    """Return what is wrong with this Python and what to do, or None if nothing is wrong.

    Args:
        version: (major, minor) of this Python.
        packages: The names by which packages are imported.
    """
    this = f"this is Python {version[0]}.{version[1]}, {sys.executable}"
    if version < OLDEST:
        return f"Python {OLDEST[0]}.{OLDEST[1]} or later is needed, and {this}; start a later one"
    missing = [name for name in packages if not is_there(name)]
    if not missing:
        return None
    what = f"-r {REQUIREMENTS}" if REQUIREMENTS.is_file() else "deepseek_jax"
    return (
        f"{this}, which lacks {', '.join(missing)}; install what is needed by: {sys.executable} -m pip "
        f"install {what}, or start the Python that has it"
    )


def is_there(name):
    """Return whether a package can be imported.

    The path is searched first, because import hooks may mistake a search for an import.
    """
    on_path = importlib.machinery.PathFinder.find_spec(name)
    return on_path is not None or importlib.util.find_spec(name) is not None
