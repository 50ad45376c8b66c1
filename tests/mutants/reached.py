"""Which lines of deepseek_jax each default test reaches: a pytest plugin that notes it, and their reader.

With python -m tests.mutants --reach each process of the tests leaves a file in the folder $REACHED.
"""

import collections
import json
import os
import sys
from pathlib import Path

import pytest

from tests.seconds import cpu_seconds

PACKAGE = Path(__file__).resolve().parents[2] / "deepseek_jax"
TOOL = 4  # a number of sys.monitoring (Python 3.12 and newer) that nobody else takes


def file_of(test: str) -> str:
    return test.partition("::")[0]


class Plugin:
    """Notes lines: {(path, number): its index}, and tests: {id: {"seconds", "passed", "lines"}}."""

    def __init__(self):
        self.lines, self.tests, self.now = {}, {}, set()
        events = sys.monitoring.events
        sys.monitoring.use_tool_id(TOOL, "reached")
        sys.monitoring.register_callback(TOOL, events.PY_START, self._starts)
        sys.monitoring.register_callback(TOOL, events.LINE, self._line)
        sys.monitoring.set_events(TOOL, events.PY_START)

    def _starts(self, code, _):
        """Ask for the lines of a function of the package when it first runs."""
        if code.co_filename.startswith(f"{PACKAGE}{os.sep}"):
            sys.monitoring.set_local_events(TOOL, code, sys.monitoring.events.LINE)
            self._line(code, code.co_firstlineno)
        return sys.monitoring.DISABLE

    def _line(self, code, number):
        self.now.add((code.co_filename, number))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.now, began = set(), cpu_seconds()
        test = self.tests[item.nodeid] = {"passed": True}
        result = yield
        test["seconds"] = round(cpu_seconds() - began, 2)
        found = [(os.path.relpath(path, PACKAGE), number) for path, number in self.now]
        test["lines"] = [self.lines.setdefault(line, len(self.lines)) for line in found]
        return result

    def pytest_runtest_logreport(self, report):
        if not report.passed and report.nodeid in self.tests:
            self.tests[report.nodeid]["passed"] = False

    def pytest_sessionfinish(self):
        if self.tests:
            notes = {"lines": list(self.lines), "tests": self.tests}
            Path(os.environ["REACHED"], f"{os.getpid()}.json").write_text(json.dumps(notes))


def pytest_configure(config):
    config.pluginmanager.register(Plugin())


class Reach:
    """What the plugin noted in a folder, of tests that passed. seconds: {test: CPU seconds}."""

    def __init__(self, folder: Path):
        self.seconds = {}
        self._by_line, self._by_path = collections.defaultdict(set), collections.defaultdict(set)
        for path in folder.glob("*.json"):
            notes = json.loads(path.read_text())
            for test, of_test in notes["tests"].items():
                if of_test["passed"] and "seconds" in of_test:
                    self.seconds[test] = of_test["seconds"]
                    for source, number in map(notes["lines"].__getitem__, of_test["lines"]):
                        self._by_line[source, number].add(test)
                        self._by_path[source].add(test)
        if not self.seconds:
            raise SystemExit(
                f"error: {folder} has no notes; run python -m tests.mutants --reach first"
            )

    def tests_of(self, mutant) -> set:
        """The tests that reach a mutant's line; where it runs at import, those that reach any of its file."""
        of_line = self._by_line[mutant.path, mutant.number] if mutant.function else ()
        return of_line or self._by_path[mutant.path]

    def in_order(self, tests, first: set) -> list:
        """Tests file by file: the files `first`, then the quick files; the quick tests of a file first."""
        files = collections.defaultdict(list)
        for test in sorted(tests, key=self.seconds.get):
            files[file_of(test)].append(test)

        def cost(file):
            return file not in first, sum(map(self.seconds.get, files[file])) / len(files[file])

        return [test for file in sorted(files, key=cost) for test in files[file]]
