"""A pytest plugin that writes down the lines of deepseek_jax that each test reaches, and its CPU seconds.

python -m tests.mutants --reach runs the tests with it; each process leaves a file in the folder $REACHED.
"""

import json
import os
import resource
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "deepseek_jax"
TOOL = 4  # free for anybody; sys.monitoring is Python 3.12's
FOLDER = os.environ.get("REACHED")


def cpu_seconds():
    """CPU seconds of this process and of those that it started and saw end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Reached:
    """What each test reached. lines: {(path, number): its index}; tests: {id: seconds, passed, lines}."""

    def __init__(self):
        self.lines, self.tests, self.now = {}, {}, set()
        monitoring = sys.monitoring
        monitoring.use_tool_id(TOOL, "reached")
        monitoring.register_callback(TOOL, monitoring.events.PY_START, self._starts)
        monitoring.register_callback(TOOL, monitoring.events.LINE, self._line)
        monitoring.set_events(TOOL, monitoring.events.PY_START)

    def _starts(self, code, _):
        """Ask for the lines of the package's code, the first time that it runs."""
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
            kept = {"lines": list(self.lines), "tests": self.tests}
            Path(FOLDER, f"{os.getpid()}.json").write_text(json.dumps(kept))


def pytest_configure(config):
    if FOLDER:
        config.pluginmanager.register(Reached())
