"""The table of README.md: what was done to runs, how often, and whether they held.

    pytest -m "" tests/reliability [--keep]

prints the rows of the tests that ran; with --keep they take the place of their like in README.md.
"""

import collections
import re
from pathlib import Path

README = Path(__file__).with_name("README.md")
# Test file -> the kind of its rows
KINDS = {
    "test_kills.py": "kills",
    "test_killed_sweeps.py": "kills",
    "test_silent_faults.py": "faults",
    "test_conversation_faults.py": "faults",
    "test_full_disk.py": "faults",
    "test_damaged_runs.py": "faults",
    "test_bad_input.py": "inputs",
    "test_hostile.py": "texts",
}
HEAD = "| kind | what the test says | number | held |\n|---|---|---|---|\n"
# kind, what, number, held
ROW = re.compile(r"^\| (\w+) \| (.*) \| (\d+) \| (.*) \|$", re.MULTILINE)


def pytest_addoption(parser):
    parser.addoption("--keep", action="store_true", help="Write the table's rows into README.md.")


def pytest_terminal_summary(terminalreporter, config):
    stats = terminalreporter.stats
    rows = table_rows(stats.get("passed", []) + stats.get("failed", []))
    if not rows:
        return
    terminalreporter.write_line(f"\n{table(rows)}")
    if config.getoption("--keep", False):
        found = ROW.findall(README.read_text())
        kept = {(kind, what): (number, held) for kind, what, number, held in found}
        put_table(HEAD, table(kept | rows))


def put_table(head: str, table: str):
    """Write a table into README.md in place of the one with this head, which ends at an empty line."""
    text = README.read_text()
    start = text.index(head)
    end = text.find("\n\n", start) + 1 or len(text)
    README.write_text(text[:start] + table + text[end:])


def table_rows(reports):
    """{(kind, what): (number, held)} of the reports of tests."""
    numbers, passed = collections.Counter(), collections.defaultdict(list)
    details = {}
    for report in reports:
        path, _, name = report.nodeid.partition("::")
        kind = KINDS.get(Path(path).name)
        if kind is None or report.when != "call":
            continue
        given, properties = name.partition("[")[2].rstrip("]"), dict(report.user_properties)
        key = kind, name.partition("[")[0].removeprefix("test_").replace("_", " ")
        if kind == "kills":
            key = kind, f"{key[1]}: {given}".removesuffix(": ")
        if kills := properties.get("kills"):
            details[key] = [", ".join(f"{each} {number}" for each, number in sorted(kills.items()))]
        numbers[key] += sum(kills.values()) if kills else properties.get("number", 1)
        passed[key].append(report.outcome == "passed")
    rows = {}
    for key, held in passed.items():
        if not numbers[key]:
            continue
        word = "yes" if all(held) else f"{sum(held)} of {len(held)} tests"
        rows[key] = str(numbers[key]), "; ".join([word, *details.get(key, [])])
    return rows


def table(rows):
    """The rows as Markdown, by kind, then in their order."""
    kinds = list(dict.fromkeys(KINDS.values()))
    lines = sorted(rows.items(), key=lambda row: kinds.index(row[0][0]))
    return HEAD + "".join(f"| {' | '.join((*key, *value))} |\n" for key, value in lines)
