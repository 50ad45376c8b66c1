"""What the whole house keeps to: no circle of imports, and one place that makes an update."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import deepseek_jax
from tests.mutants import held
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
    """Oracle: a topological order of all files, which graphlib finds only where there is no circle; imports
    within functions, of lazy names and in texts count.
    """
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


def is_marked(function):
    """Whether a test is left out by default."""
    marks = [ast.unparse(decorator) for decorator in function.decorator_list]
    return any(mark in ("pytest.mark.slow", "pytest.mark.pod") for mark in marks)


CLOCKS = ("time.monotonic", "time.perf_counter", "time.process_time", "time.time")


def is_time_since(node):
    """Whether this is what a clock shows minus an earlier time."""
    called = getattr(getattr(node, "left", None), "func", None)
    return isinstance(node, ast.BinOp) and called is not None and ast.unparse(called) in CLOCKS


def test_no_default_test_asserts_a_clock_time():
    """Oracle: the asserts of tests without the mark slow or pod. `assert time.monotonic() < until` ends what
    hangs, and may stand.
    """
    found = []
    for path in (ROOT.parent / "tests").rglob("*.py"):
        text = path.read_text()
        if not any(clock in text for clock in CLOCKS):
            continue
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        for function in functions:
            asserts = [node for node in ast.walk(function) if isinstance(node, ast.Assert)]
            times = any(is_time_since(node) for each in asserts for node in ast.walk(each))
            found += [f"{path.name}: {function.name}"] if times and not is_marked(function) else []
    assert found == []


def test_settings_are_read_without_a_sampler_orbax_or_a_model():
    """Oracle: sys.modules of a fresh interpreter, which imports those of all recipes."""
    settings = [
        f"deepseek_jax.recipes.{path.parent.name}.settings"
        for path in ROOT.glob("recipes/*/settings.py")
    ]
    program = f"import sys, {', '.join(settings)}; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    unwanted = ("rollout.engine", "rollout.policy", "checkpoint.orbax_params", "models.decoder")
    assert len(settings) > 5 and {*settings} <= {*names}
    assert not [n for n in names if n == "orbax" or n.endswith(unwanted)]


def test_each_module_says_which_tests_hold_it():
    """Oracle: the files: that of the module's name in the mirror, and what its docstring names. Whether these
    catch a fault of the module is what `python -m tests.mutants --module=all` tries.
    """
    tests = {module: held.tests_of(module) for module in held.modules()}
    assert len(tests) > 400
    assert not [str(module) for module, files in tests.items() if not files]
    missing = {
        file for files in tests.values() for file in files if not (ROOT.parent / file).exists()
    }
    assert not missing
