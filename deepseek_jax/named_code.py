"""Functions that a command line or a config names: FILE.py:NAME or package.module:NAME.

Nothing else names code: no file of a run, a checkpoint, a data set or an adapter does.
"""

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from ml_collections import ConfigDict

from deepseek_jax.errors import at
from deepseek_jax.files import expanded
from deepseek_jax.settings import NamesCode, marked_texts
from deepseek_jax.trees import PyTree

NAMED = re.compile(r"(?P<source>[^:]+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")
# How to use your own function: the end of a message about an unknown name
BRING = "or bring your own: FILE.py:NAME or package.module:NAME"
# The folder of the config, where files are searched for before the working directory
_beside: list[Path] = []
# The file that this thread is importing for a user's function
_importing: ContextVar[Path | None] = ContextVar("importing", default=None)


def is_code(name: object) -> TypeGuard[str]:
    """Return whether a value in a config is a text that names code."""
    return isinstance(name, str) and NAMED.fullmatch(name) is not None


def _split(name: str) -> tuple[str, str]:
    """Split a name of code: (FILE.py or package.module, NAME)."""
    match = NAMED.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is not of the form FILE.py:NAME or package.module:NAME, where FILE has no colon and "
            "NAME begins with a letter from a to z; rename the file or the function"
        )
    return match["source"], match["name"]


def name_of(code: Callable) -> str:
    """Return the name that a config can have in place of a function or class.

    Raises:
        ValueError: A worker process cannot import it: it is a lambda, or is defined within a
            function, in a notebook or on a console.
    """
    module = sys.modules.get(getattr(code, "__module__", None) or "")
    name, file = getattr(code, "__qualname__", ""), getattr(module, "__file__", None)
    is_named = getattr(module, name, None) is code
    is_in_file = file is not None and Path(file).suffix == ".py" and Path(file).is_file()
    if module is None or file is None or not (is_named and is_in_file):
        raise ValueError(
            f"{name or code!r} has no name in a file, by which worker processes could import it; write it "
            "with def into a file, as a notebook's %%writefile my_code.py does, and give my_code.py:NAME"
        )
    # A file of a package may have relative imports, so it needs its module's name
    if module.__name__ != "__main__" and "." in module.__name__:
        return f"{module.__name__}:{name}"
    short_name = f"{os.path.relpath(file)}:{name}"
    # The config's folder may have another file of this name
    leads_to_file = not short_name.startswith("..") and code_file(short_name).samefile(file)
    return short_name if leads_to_file else f"{Path(file).absolute()}:{name}"


def named(tree: PyTree) -> Any:
    """Replace functions and classes in nested blocks and lists by their names, as name_of does.

    The result has plain dicts and lists.
    """
    if isinstance(tree, (Mapping, ConfigDict)):
        return {named(key): named(value) for key, value in _items(tree)}
    if isinstance(tree, (list, tuple)):
        return [named(entry) for entry in tree]
    return name_of(tree) if callable(tree) else tree


def _items(block):
    try:
        return block.items()
    # A ConfigDict sorts its keys, and functions do not compare with texts
    except TypeError as error:
        raise ValueError(
            "a ConfigDict cannot have functions beside texts as keys; give ds.config "
            "rewards={FUNCTION: WEIGHT}, or ds.train a dict"
        ) from error


def look_beside(config_file: str | Path):
    """Search for files in this config's folder first from now on, then in the working directory."""
    _beside[:] = [Path(config_file).absolute().parent]


def code_file(name: str) -> Path:
    """Return the path of the file with the code that `name` names, without importing it.

    Raises:
        ValueError: There is no such file or module, or the name is not one of code.
    """
    source, _ = _split(name)
    if not source.endswith(".py"):
        return _module_file(name, source)
    folders = (*_beside, Path.cwd())
    for folder in folders:
        if (folder / expanded(source)).is_file():
            return folder / expanded(source)
    folder_names = " and ".join(dict.fromkeys(map(str, folders)))
    raise ValueError(f"there is no file {source}, of {name}, in {folder_names}; correct its path")


def _module_file(name, module):
    # By hand: importlib.util.find_spec would import the packages around the module
    package, *submodules = module.split(".")
    spec = importlib.util.find_spec(package)
    files: list[str | Path | None] = [] if spec is None else [spec.origin]
    if spec is not None and submodules:
        stems = [
            Path(folder).joinpath(*submodules) for folder in spec.submodule_search_locations or ()
        ]
        files = [p for stem in stems for p in (stem.with_suffix(".py"), stem / "__init__.py")]
    module_path = next((Path(file) for file in files if file and Path(file).is_file()), None)
    if module_path is None:
        raise ValueError(
            f"there is no module {module}, of {name}; install it, or give FILE.py:NAME"
        )
    return module_path


def code_digests(settings: object, path: str = "config") -> dict[str, str]:
    """Compute a digest of each code file that the settings name.

    The digests do not cover what the code imports.

    Args:
        path: The path of the settings in the config, for messages.

    Returns:
        {FILE.py or package.module: digest of its text}.

    Raises:
        ValueError: As code_file does.
    """
    digests = {}
    for keys, name, _ in marked_texts(settings, NamesCode):
        if is_code(name):
            with at(".".join((path, *map(str, keys)))):
                digests[_split(name)[0]] = _digest(code_file(name))
    return digests


def digest_of(name: str | None, file: Path | None = None) -> str | None:
    """Compute a digest of the file with the code that a name names; None for a name of no code.

    Args:
        name: Any text.
        file: The result of code_file, if it is known already.
    """
    if not is_code(name):
        return None
    return _digest(file or code_file(name))


def _digest(file):
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()


def names_in(tree: object) -> list[str]:
    """Return every text and key of nested blocks and lists that looks like a name of code."""
    if isinstance(tree, Mapping):
        tree = [*tree.keys(), *tree.values()]
    if isinstance(tree, (list, tuple)):
        return [name for entry in tree for name in names_in(entry)]
    return [tree] if is_code(tree) else []


def import_code(file: Path, name: str) -> Callable:
    """Import the function that `name` names, which runs its file.

    Args:
        file: The result of code_file.
        name: FILE.py:NAME or package.module:NAME.

    Raises:
        ValueError: The file raises (the message has the line), or it lacks the function.
    """
    source, function_name = _split(name)
    return _function(_module(file, source), source, function_name)


def import_unchanged(file: Path, name: str, digest: str) -> Callable:
    """Import the function that `name` names, from a file that has this digest.

    The file runs once for all its functions.

    Args:
        file: The result of code_file.
        name: FILE.py:NAME or package.module:NAME.
        digest: The result of digest_of.

    Raises:
        ValueError: As import_code does; or the file has changed.
    """
    source, function_name = _split(name)
    return _function(_unchanged_module(file, source, digest), source, function_name)


@functools.cache
def _unchanged_module(file, source, digest):
    if digest_of(f"{source}:module", file) != digest:
        raise ValueError(
            f"{file.name} has changed since the run began; stop the run, and start it anew"
        )
    return _module(file, source)


def _module(file, source):
    token = _importing.set(file)
    try:
        return import_file(file) if source.endswith(".py") else importlib.import_module(source)
    # A file that calls sys.exit would end the process
    except (Exception, SystemExit) as error:
        raise ValueError(f"{source} cannot be imported: {with_line(error, file)}") from error
    finally:
        _importing.reset(token)


def _function(module, source, function_name):
    function = getattr(module, function_name, None)
    if not callable(function):
        names = ", ".join(key for key, value in vars(module).items() if _is_own(value, module))
        raise ValueError(f"{source} has no function {function_name}; it has {names or 'none'}")
    return function


def call_code(file: Path, name: str, *arguments: object) -> Any:
    """Import the function that `name` names, call it and return its result.

    Raises:
        ValueError: As import_code does; or the function raises, and the message has the line.
    """
    function = import_code(file, name)
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise ValueError(with_line(error, file)) from error


def import_file(file: str | Path) -> ModuleType:
    """Run a Python file and return it as a module; each call runs it once more.

    It can import the files in its folder. An error of the file passes through.

    Args:
        file: Ends in .py.
    """
    spec = importlib.util.spec_from_file_location(f"_named_{Path(file).stem}", file)
    assert spec is not None and spec.loader is not None, f"{file} does not end in .py"
    # Registered before it runs, as import does: dataclasses look their module up there
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    folder = str(Path(file).absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module


def require_no_import(does: str):
    """Raise ValueError if a file that is imported for a function in it calls this.

    Args:
        does: What the file does by this call, in words for the message.
    """
    if (file := _importing.get()) is not None:
        raise ValueError(
            f"{file.name} {does} while it is imported for a function in it; put the function in a file of "
            'its own, or that call under `if __name__ == "__main__":`'
        )


def with_line(error: BaseException, file: str | Path) -> str:
    """Describe an error of the code in a file, with its line there, in one line."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == Path(file).resolve()
    ]
    # A file that does not parse has run no line, but its error has the line's number
    line = lines[-1] if lines else getattr(error, "lineno", None)
    location = f"{Path(file).name}, line {line}" if line else Path(file).name
    return f"{location}: {type(error).__name__}: {error}"


def _is_own(value, module):
    return callable(value) and getattr(value, "__module__", None) == module.__name__
