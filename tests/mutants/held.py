"""Which tests hold a module, and whether they catch a fault of it."""

import ast
import random
import re
from pathlib import Path

from tests.mutants import trial
from tests.mutants.changes import Mutant, mutants_of
from tests.mutants.trial import ROOT

ROOMS = "deepseek_jax", "launch"
# So many faults of a module are tried until its tests catch one
TRIES = 12


def modules() -> list[Path]:
    """Every module that has code, as a path from ROOT; minimal.py and the others of the top level too."""
    found = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in found if path.name != "__init__.py"]


def tests_of(module: Path) -> list[str]:
    """The files of tests that hold a module: what its docstring names, and that of its name in the mirror."""
    room, *folders = module.parts[:-1]
    mirror = Path("tests", *([] if room == "deepseek_jax" else [room]), *folders)
    path = mirror / f"test_{module.name}"
    named = re.findall(r"tests/[\w/]*test_\w+\.py", _docstring(module))
    return [str(path), *named] if (ROOT / path).exists() else named


def marks_of(module: Path) -> str:
    """What pytest's -m takes for these tests: the slow ones where a docstring names "Slow tests"."""
    return "slow" if "Slow tests: " in _docstring(module) else trial.Stage.marks


def _docstring(module):
    return ast.get_docstring(ast.parse((ROOT / module).read_text())) or ""


def sampled(module: Path, judged: dict, seed: int) -> list[Mutant]:
    """Draw up to TRIES mutants of a module, without those that are judged to change nothing."""
    mutants = mutants_of(ROOT / module, ROOT / module.parts[0])
    mutants = [mutant for mutant in mutants if mutant.name not in judged]
    random.Random(f"{seed} {module}").shuffle(mutants)
    return mutants[:TRIES]


def try_modules(wanted: list[Path], judged: dict, work: Path, processes: int, seed: int):
    """Yield (module, its tests, what they caught) of modules, whose tests are tried until they catch a fault.

    What they caught is a Mutant, or in words why there is none.
    """
    waiting = {module: sampled(module, judged, seed) for module in wanted}
    for module in [module for module, mutants in waiting.items() if not mutants]:
        del waiting[module]
        yield module, tests_of(module), "it has nothing that can be planted"
    for module in [module for module in waiting if not tests_of(module)]:
        del waiting[module]
        yield module, [], "NOTHING"
    while waiting:
        trials = (
            (
                (module, mutants[0]),
                trial.Trial(
                    str(module),
                    mutants[0].planted((ROOT / module).read_bytes()),
                    [trial.Stage("own", tests_of(module), marks_of(module))],
                ),
            )
            for module, mutants in list(waiting.items())
        )
        for (module, mutant), found in trial.try_all(trials, work, processes):
            waiting[module].pop(0)
            if found["is"] == "own" or not waiting[module]:
                del waiting[module]
                caught = mutant if found["is"] == "own" else "NOTHING"
                yield module, tests_of(module), caught
