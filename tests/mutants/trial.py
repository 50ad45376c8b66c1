"""One mutant's trial: the tests that can see its line run in a child of this process until one fails."""

import dataclasses
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import pytest

from tests.mutants.reached import file_of
from tests.seconds import cpu_seconds

CPU_SECONDS = 120  # no test of a trial begins later
# Ends a test that does not end
HARD_CPU_SECONDS, WALL_SECONDS = 300, 900
ARGUMENTS = [
    "--override-ini=addopts=--import-mode=importlib",
    "-m",
    "not slow and not pod",
    "-x",
    "-q",
]
ARGUMENTS += ["--no-summary", "-p", "no:xdist", "-p", "no:cacheprovider"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Tests that run together. where: "own" for the mutant's room, or "elsewhere". tests: ids, in order."""

    where: str
    tests: list[str]


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


def begin(copy: Path, stages: list[Stage]) -> int:
    """Start the trial of the mutant that stands in a copy of the tree: -> the child's process id."""
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

    status, used: as os.wait4 gives them. A mutant that crashes, or runs without end, is caught by a signal.
    Raises SystemExit where the trial itself failed.
    """
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return {"is": "own", "test": name, "seconds": round(used.ru_utime + used.ru_stime, 1)}
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
        status = pytest.main(
            [*ARGUMENTS, *dict.fromkeys(map(file_of, stage.tests))], plugins=[chosen]
        )
        import deepseek_jax

        assert deepseek_jax.__file__.startswith(os.getcwd()), deepseek_jax.__file__
        if chosen.failed:
            found = {"is": stage.where, "test": chosen.failed}
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
        items[:] = [item for item in items if item.nodeid in self.place]
        items.sort(key=lambda item: self.place[item.nodeid])

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
