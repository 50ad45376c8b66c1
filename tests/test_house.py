"""What the whole house keeps to: no circle of imports, and one place that makes an update."""

import ast
import graphlib
from pathlib import Path

import deepseek_jax
from tests.test_import_order import imports_of

ROOT = Path(deepseek_jax.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def module_of(parts):
    """The module that an imported dotted name is, or is of; None for a name that a package looks up."""
    for length in (len(parts), len(parts) - 1):
        name = ".".join(parts[:length])
        if MODULES.get(name, ROOT / "__init__.py").name != "__init__.py":
            return name
    return None


def test_no_import_goes_round_in_a_circle():
    """Oracle: a topological order of all files, which graphlib finds only where there is no circle."""
    graph = {
        name: {module_of(parts) for parts in imports_of(path)} - {None, name}
        for name, path in MODULES.items()
    }
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


def calls_of(path, name):
    """How often a file calls this name."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return sum(
        isinstance(node, ast.Call) and getattr(node.func, "id", None) == name for node in nodes
    )


def test_one_place_makes_an_update():
    """Oracle: the calls in all files: training/update.py makes it, for runs and for plans."""
    found = {name: calls_of(path, "Update") for name, path in MODULES.items()}
    assert {name: n for name, n in found.items() if n} == {"deepseek_jax.training.update": 1}
