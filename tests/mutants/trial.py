"""Trials of faults: each is planted in a copy of the tree, and tests run in a child of this process until one
fails.
"""

import dataclasses
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mutants.reached import PACKAGE, file_of
from tests.seconds import cpu_seconds

ROOT = PACKAGE.parent
# Imported once, so that each child begins with them
HEAVY = [
    "jax",
    "flax.linen",
    "optax",
    "orbax.checkpoint",
    "torch",
    "transformers",
    "safetensors.numpy",
]
HEAVY += ["ml_collections", "absl.flags", "hypothesis"]
CPU_SECONDS = 120  # no test of a trial begins later
# Ends a test that does not end
HARD_CPU_SECONDS, WALL_SECONDS = 300, 900
# A KeyboardInterrupt and a SystemExit that a test raises end pytest itself
ENDED_BY_A_FAULT = pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR
ARGUMENTS = [
    "--override-ini=addopts=--import-mode=importlib",
    "-x",
    "-q",
]
ARGUMENTS += ["--no-summary", "-p", "no:xdist", "-p", "no:cacheprovider"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Tests that run together. where: "own" for the mutant's room, or "elsewhere". tests: in order, ids of
    tests, of functions with all their cases, or files. marks: what pytest's -m takes.
    """

    where: str
    tests: list[str]
    marks: str = "not slow and not pod"


class Trial(NamedTuple):
    """A fault, and the tests to try it by. path: of its file, from ROOT. source: the file with the fault."""

    path: str
    source: bytes
    stages: list[Stage]


def replaced(path: str, old: str, new: str) -> bytes:
    """A source of deepseek_jax with `new` in place of `old`. Raises ValueError unless it has `old` once."""
    source = (PACKAGE / path).read_text()
    if source.count(old) != 1:
        raise ValueError(
            f"{path} has this text {source.count(old)} times, and not once: the code has moved, and what "
            f"plants a fault there has to follow it:\n{old}"
        )
    return source.replace(old, new).encode()


def stages_of(mutant, room: str, reach) -> list[Stage]:
    """The tests that can see a mutant, nearest first.

    They are those of its room that reach its line, and those of its module; the others of the same files,
    because a program that is compiled already runs without its Python lines; those of other rooms that reach
    the line. room: what the ids of the room's tests begin with.
    """
    own = {test for test in reach.seconds if test.startswith(room)}
    of_module = {
        test for test in own if file_of(test).endswith(f"/test_{Path(mutant.path).stem}.py")
    }
    seen = reach.tests_of(mutant)
    # Nothing reaches a line of a table that is read at import alone: then all of the room
    near = (seen & own) | of_module or own
    first = {file_of(test) for test in of_module}
    beside = {test for test in own - near if file_of(test) in set(map(file_of, near))}
    orders = [("own", near), ("own", beside), ("elsewhere", seen - own)]
    return [Stage(where, reach.in_order(tests, first)) for where, tests in orders if tests]


def copy_tree(folder: Path) -> Path:
    """Copy the working tree. A changed source is always compiled anew there, however fast it changes."""
    shutil.rmtree(folder, ignore_errors=True)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(os.path.isfile, names.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    command = [
        sys.executable,
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode=checked-hash",
        "deepseek_jax",
    ]
    subprocess.run(command, cwd=folder, check=True)
    return folder


def try_all(trials, work: Path, processes: int):
    """Try (key, Trial)s, `processes` at a time, each in a copy of the tree: yields (key, its verdict)s."""
    copies = [copy_tree(work / f"copy{number}") for number in range(processes)]
    for name in ["tests.conftest", *HEAVY]:
        importlib.import_module(name)
    assert "deepseek_jax" not in sys.modules
    waiting, running = iter(trials), {}
    while True:
        while copies and (given := next(waiting, None)):
            copy, (key, (path, source, stages)) = copies.pop(), given
            (copy / path).write_bytes(source)
            running[begin(copy, stages)] = copy, key, path
        if not running:
            return
        child, *ended = os.wait4(-1, 0)
        copy, key, path = running.pop(child)
        yield key, verdict(copy, *ended)
        shutil.copy2(ROOT / path, copy / path)
        copies.append(copy)


def begin(copy: Path, stages: list[Stage]) -> int:
    """Start the trial of the fault that stands in a copy of the tree: -> the child's process id."""
    child = os.fork()
    if child:
        return child
    try:
        _settle(copy)
        result = _try(stages)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    _written(copy).write_text(json.dumps(result))
    os._exit(0)


def verdict(copy: Path, status: int, used) -> dict:
    """What a trial found: "is" (own, elsewhere or survived), the "test" that failed, and CPU "seconds".

    status, used: as os.wait4 gives them. A mutant that crashes, or computes without end, is caught by a
    signal. One that waits without end counts as survived: on a busy machine it may wait for its turn.
    Raises SystemExit where the trial itself failed.
    """
    if os.WIFSIGNALED(status):
        by = signal.Signals(os.WTERMSIG(status))
        kind = "survived" if by == signal.SIGALRM else "own"
        return {"is": kind, "test": by.name, "seconds": round(used.ru_utime + used.ru_stime, 1)}
    if status:
        raise SystemExit(f"error: a trial failed; {copy}.out says how")
    result = json.loads(_written(copy).read_text())
    _written(copy).unlink()
    return result


def _written(copy):
    return copy.with_suffix(".json")


def _settle(copy):
    """Make the child a process of its own, whose deepseek_jax is the copy's."""
    os.setpgid(0, 0)
    os.chdir(copy)
    # These were imported from the tree: their programs would run its code
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "configs")]:
        del sys.modules[name]
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    resource.setrlimit(resource.RLIMIT_CPU, (HARD_CPU_SECONDS, HARD_CPU_SECONDS))
    signal.alarm(WALL_SECONDS)
    out = os.open(f"{copy}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)


def _try(stages):
    began = cpu_seconds()
    found = {"is": "survived", "test": ""}
    for stage in stages:
        chosen = _Chosen(stage.tests, began + CPU_SECONDS)
        files = dict.fromkeys(map(file_of, stage.tests))
        status = pytest.main([*ARGUMENTS, "-m", stage.marks, *files], plugins=[chosen])
        import deepseek_jax

        assert deepseek_jax.__file__.startswith(os.getcwd()), deepseek_jax.__file__
        if chosen.failed:
            found = {"is": stage.where, "test": chosen.failed}
            break
        if status in ENDED_BY_A_FAULT and not chosen.late:
            found = {"is": stage.where, "test": status.name}
            break
        assert chosen.late or status == pytest.ExitCode.OK, status
        if chosen.late:
            found["test"] = "(time was over)"
            break
    return found | {"seconds": round(cpu_seconds() - began, 1)}


class _Chosen:
    """A pytest plugin: run these tests in order until the CPU time `limit`, and note the first that fails."""

    def __init__(self, tests, limit):
        self.place = {test: place for place, test in enumerate(tests)}
        self.limit, self.failed, self.late = limit, "", False

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if self._place(item.nodeid) is not None]
        items.sort(key=lambda item: self._place(item.nodeid))

    def _place(self, test):
        names = test, test.partition("[")[0], file_of(test)
        return next((self.place[name] for name in names if name in self.place), None)

    def pytest_collectreport(self, report):
        self._note(report)

    def pytest_runtest_logreport(self, report):
        self._note(report)

    def _note(self, report):
        if report.failed:
            self.failed = self.failed or report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        if cpu_seconds() > self.limit:
            self.late, item.session.shouldstop = True, "the time is over"
