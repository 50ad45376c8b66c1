"""One mutant's trial: the tests that can see its line, in a child of this process, until one of them fails."""

import dataclasses
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import pytest

from tests.mutants.reached import cpu_seconds

CPU_SECONDS = 120  # of a mutant; no test begins after them
HARD_CPU_SECONDS = 300  # a test that does not end
WALL_SECONDS = 900
ARGUMENTS = [
    *("--override-ini=addopts=--import-mode=importlib", "-m", "not slow and not pod"),
    *("-x", "-q", "--no-header", "--no-summary", "-p", "no:xdist", "-p", "no:cacheprovider"),
]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Tests that run together. where: "own" room or "elsewhere". tests: their ids, in order."""

    where: str
    tests: list[str]


def stages_of(mutant, rooms_tests, reached):
    """The Stages of a mutant: tests of its room that reach it, with its module's; others of their files; tests elsewhere.

    A file's other tests are there because a program that is compiled already runs without its Python lines.
    rooms_tests: the folder of tests of the mutant's room. reached: a Reach.
    """
    own = {test for test in reached.seconds if test.startswith(rooms_tests)}
    of_module = {test for test in own if file_of(test).endswith(f"/test_{Path(mutant.path).stem}.py")}
    seen = reached.tests_of(mutant)
    first = (seen & own) | of_module
    files = {file_of(test) for test in first}
    second = {test for test in own - first if file_of(test) in files}
    orders = [("own", first), ("own", second), ("elsewhere", seen - own)]
    return [Stage(where, reached.in_order(tests, {file_of(test) for test in of_module})) for where, tests in orders]


def file_of(test: str) -> str:
    return test.partition("::")[0]


class _Chosen:
    """A pytest plugin: run these tests, in this order, while there is CPU time, and note what fails."""

    def __init__(self, tests, limit):
        self.place = {test: place for place, test in enumerate(tests)}
        self.limit, self.failed, self.out_of_time = limit, None, False

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted(
            (item for item in items if item.nodeid in self.place), key=lambda item: self.place[item.nodeid]
        )

    def pytest_collectreport(self, report):
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.failed:
            self.failed = report.nodeid

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid):
        self.out_of_time = cpu_seconds() > self.limit

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        if self.out_of_time:
            item.session.shouldstop = "out of time"
        return None


def begin(copy, stages, written):
    """Start the trial of the mutant that stands in a copy of the tree: -> the child's process id."""
    child = os.fork()
    if child:
        return child
    try:
        _as_child(copy)
        result = _try(stages)
    except BaseException:
        result = {"error": traceback.format_exc()}
    Path(written).write_text(json.dumps(result))
    os._exit(0)


def _as_child(copy):
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
    began, ran = cpu_seconds(), 0
    for stage in stages:
        if not stage.tests:
            continue
        chosen = _Chosen(stage.tests, began + CPU_SECONDS)
        files = list(dict.fromkeys(map(file_of, stage.tests)))
        status = pytest.main([*ARGUMENTS, *files], plugins=[chosen])
        import deepseek_jax

        assert deepseek_jax.__file__.startswith(os.getcwd()), deepseek_jax.__file__
        ran += len(stage.tests)
        seconds = round(cpu_seconds() - began, 1)
        if chosen.failed:
            return {"where": stage.where, "test": chosen.failed, "seconds": seconds}
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.INTERRUPTED):
            return {"error": f"pytest ended with {status}"}
        if chosen.out_of_time:
            return {"where": "survived", "test": "", "seconds": seconds, "all": False}
    return {"where": "survived", "test": "", "seconds": round(cpu_seconds() - began, 1), "all": True}
