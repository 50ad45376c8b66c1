"""The names that the package and its rooms offer to others."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepseek_jax

ROOT = Path(__file__).resolve().parents[1]
ROOMS = re.findall(r"^(\w+)/ ", deepseek_jax.__doc__, re.M)
WITHOUT_JAX = (
    "costs",
    "data",
    "environments",
    "evaluation",
    "recipes",
    "reports",
    "rewards",
    "worlds",
)


def room(name):
    return importlib.import_module(f"deepseek_jax.{name}")


def test_the_package_imports_no_jax_by_itself():
    """Oracle: sys.modules of a fresh interpreter, which has also listed the public names."""
    heavy = ("jax", "flax", "transformers", "tensorflow_datasets", "torch")
    program = f"import sys, deepseek_jax; dir(deepseek_jax); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_rooms_with_modules_free_of_jax_import_none():
    """Oracle: sys.modules of a fresh interpreter: workers that grade answers start without jax."""
    names = ", ".join(f"deepseek_jax.{name}" for name in WITHOUT_JAX)
    program = f"import sys, {names}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", deepseek_jax.__all__)
def test_a_public_name_is_a_rooms_and_says_what_it_is(name):
    """Oracle: the room that lists it, and its docstring."""
    value = getattr(deepseek_jax, name)
    # RULES of parallel are others than those of rewards
    homes = [r for r in map(room, ROOMS) if name in getattr(r, "__all__", ())]
    assert sum(getattr(home, name) is value for home in homes) == 1 and value.__doc__


@pytest.mark.parametrize("name", ROOMS)
def test_every_name_that_a_room_exports_loads(name):
    """Oracle: __all__, and the room's modules: a name of a module would be replaced by it."""
    package = room(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for exported in getattr(package, "__all__", ()):
        assert getattr(package, exported) is not None
        assert exported not in modules
    assert list(getattr(package, "__all__", ())) == sorted(getattr(package, "__all__", ()))


def without_hints(function):
    """The parameters of a function that have no type hint, and "return" where that has none."""
    signature = inspect.signature(inspect.unwrap(function))
    names = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    return names + ["return"] * (signature.return_annotation is signature.empty)


@pytest.mark.parametrize("name", ["", *ROOMS])
def test_every_public_function_and_constructor_has_type_hints(name):
    """Oracle: the signatures. A dataclass and a NamedTuple have hints by their form."""
    package = room(name) if name else deepseek_jax
    missing = {}
    for exported in getattr(package, "__all__", ()):
        value = getattr(package, exported)
        if inspect.isfunction(inspect.unwrap(value)):
            missing[exported] = without_hints(value)
        elif inspect.isclass(value) and "__init__" in vars(value):
            missing[exported] = sorted(set(without_hints(value.__init__)) - {"self", "return"})
    assert {name: hints for name, hints in missing.items() if hints} == {}


def test_a_name_that_is_not_there_is_an_attribute_error():
    """Oracle: Python's own words; `from deepseek_jax import models` needs the error to find the room."""
    with pytest.raises(AttributeError, match="'deepseek_jax' has no attribute 'load_fh'"):
        _ = deepseek_jax.load_fh
    with pytest.raises(ImportError, match="cannot import name 'load_fh'"):
        exec("from deepseek_jax import load_fh")
