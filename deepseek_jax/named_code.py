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
from typing import Any

from ml_collections import ConfigDict

from deepseek_jax.errors import at
from deepseek_jax.files import expanded
from deepseek_jax.settings import NamesCode, marked_texts

NAMED = re.compile(r"(?P<source>[^:]+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")
# How to bring one, for messages about a name that is not known
BRING = "or bring your own: FILE.py:NAME or package.module:NAME"
# Where files are looked for before the working directory: the folder of the config
_beside: list[Path] = []
# The file with a user's function that this thread imports
_importing: ContextVar[Path | None] = ContextVar("importing", default=None)


def is_code(name):
    """Whether a config's text names code."""
    return isinstance(name, str) and NAMED.fullmatch(name) is not None


def name_of(code: Callable) -> str:
    """The name of a function or class that a config can have in its place.

    Raises ValueError for one that a worker process cannot import: a lambda, one that is defined within a
    function, in a notebook or on a console.
    """
    module = sys.modules.get(getattr(code, "__module__", None))
    name, file = getattr(code, "__qualname__", ""), getattr(module, "__file__", None)
    is_named = getattr(module, name, None) is code and file is not None
    if not is_named or Path(file).suffix != ".py" or not Path(file).is_file():
        raise ValueError(
            f"{name or code!r} has no name in a file, by which worker processes could import it; write it "
            "with def into a file, as a notebook's %%writefile my_code.py does, and give my_code.py:NAME"
        )
    # A file of a package may import relative to it
    if module.__name__ != "__main__" and "." in module.__name__:
        return f"{module.__name__}:{name}"
    short = f"{os.path.relpath(file)}:{name}"
    # Beside the config another file may have this name
    found = not short.startswith("..") and code_file(short).samefile(file)
    return short if found else f"{Path(file).absolute()}:{name}"


def named(tree: Any) -> Any:
    """Nested blocks and lists, as plain ones, with name_of in the place of functions and classes."""
    if isinstance(tree, (Mapping, ConfigDict)):
        return {named(key): named(value) for key, value in _items(tree)}
    if isinstance(tree, (list, tuple)):
        return [named(entry) for entry in tree]
    return name_of(tree) if callable(tree) else tree


def _items(block):
    try:
        return block.items()
    # A ConfigDict sorts its keys
    except TypeError as error:
        raise ValueError(
            "a ConfigDict cannot have functions beside texts as keys; give ds.config "
            "rewards={FUNCTION: WEIGHT}, or ds.train a dict"
        ) from error


def look_beside(config_file: str | Path):
    """From now on, look for files beside this config first, then in the working directory."""
    _beside[:] = [Path(config_file).absolute().parent]


def code_file(name: str):
    """The Path of the file with the code that `name` names, which is not imported.

    Raises ValueError where there is no such file or module.
    """
    source = NAMED.fullmatch(name)["source"]
    if not source.endswith(".py"):
        return _module_file(name, source)
    folders = (*_beside, Path.cwd())
    for folder in folders:
        if (folder / expanded(source)).is_file():
            return folder / expanded(source)
    looked = " and ".join(dict.fromkeys(map(str, folders)))
    raise ValueError(f"there is no file {source}, of {name}, in {looked}; correct its path")


def _module_file(name, module):
    # By hand: importlib.util.find_spec would import the packages around the module
    first, *inner = module.split(".")
    spec = importlib.util.find_spec(first)
    files = [] if spec is None else [spec.origin]
    if spec is not None and inner:
        places = [Path(folder).joinpath(*inner) for folder in spec.submodule_search_locations or ()]
        files = [p for place in places for p in (place.with_suffix(".py"), place / "__init__.py")]
    found = next((Path(file) for file in files if file and Path(file).is_file()), None)
    if found is None:
        raise ValueError(
            f"there is no module {module}, of {name}; install it, or give FILE.py:NAME"
        )
    return found


def code_digests(settings, path: str = "config") -> dict[str, str]:
    """{source: a digest of its text} of the code that a dataclass of settings names.

    What the code imports is not in the digest. Raises ValueError as code_file does; path: of the settings,
    for messages.
    """
    digests = {}
    for keys, name, _ in marked_texts(settings, NamesCode):
        if is_code(name):
            with at(".".join((path, *map(str, keys)))):
                digests[NAMED.fullmatch(name)["source"]] = digest_of(name)
    return digests


def digest_of(name: str, file: Path | None = None):
    """A digest of the text of the code that a name names; None for a name of no code. file: of code_file."""
    if not is_code(name):
        return None
    return hashlib.blake2b((file or code_file(name)).read_bytes(), digest_size=8).hexdigest()


def names_in(tree) -> list[str]:
    """Every text and key of nested blocks and lists that looks like a name of code."""
    if isinstance(tree, Mapping):
        tree = [*tree.keys(), *tree.values()]
    if isinstance(tree, (list, tuple)):
        return [name for entry in tree for name in names_in(entry)]
    return [tree] if is_code(tree) else []


def import_code(file: Path, name: str):
    """What `name` names, from its `file` (of code_file): this runs the file.

    Raises ValueError, naming the line, where the file raises, and where it lacks the function.
    """
    source, function = NAMED.fullmatch(name).groups()
    return _function(_module(file, source), source, function)


def import_unchanged(file: Path, name: str, digest: str):
    """import_code, for a file that has this digest (of digest_of): it runs once for all its functions.

    Raises ValueError as import_code does, and where the file has changed.
    """
    source, function = NAMED.fullmatch(name).groups()
    return _function(_unchanged_module(file, source, digest), source, function)


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


def _function(module, source, function):
    found = getattr(module, function, None)
    if not callable(found):
        has = ", ".join(key for key, value in vars(module).items() if _is_own(value, module))
        raise ValueError(f"{source} has no function {function}; it has {has or 'none'}")
    return found


def call_code(file: Path, name: str, *arguments):
    """What the function `name` of its file returns. Raises ValueError, naming the line, where it raises."""
    function = import_code(file, name)
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise ValueError(with_line(error, file)) from error


def import_file(file: Path):
    """The module of a Python file, run once more on each call. It can import the files beside it.

    file: ends in .py. Raises what the file raises.
    """
    spec = importlib.util.spec_from_file_location(f"_named_{Path(file).stem}", file)
    # Registered before it runs, as import does: dataclasses look their module up there
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    folder = str(Path(file).absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module


def require_no_import(does: str):
    """Raise ValueError where a file that is imported for a function in it calls this. does: what it does."""
    if (file := _importing.get()) is not None:
        raise ValueError(
            f"{file.name} {does} while it is imported for a function in it; put the function in a file of "
            'its own, or that call under `if __name__ == "__main__":`'
        )


def with_line(error: BaseException, file: Path):
    """An error that the code in a file raised, with its line there, as one line."""
    lines = [
        place.lineno
        for place in traceback.extract_tb(error.__traceback__)
        if Path(place.filename).resolve() == Path(file).resolve()
    ]
    # A file that does not parse has run no line
    line = lines[-1] if lines else getattr(error, "lineno", None)
    where = f"{Path(file).name}, line {line}" if line else Path(file).name
    return f"{where}: {type(error).__name__}: {error}"


def _is_own(value, module):
    return callable(value) and getattr(value, "__module__", None) == module.__name__
