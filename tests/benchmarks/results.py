"""Write the tables of README.md and of the guides from configs/results/*.json.

python -m tests.benchmarks.results                    # every table, between its markers
python -m tests.benchmarks.results --check            # exit status 1 if a table is out of date
python -m tests.benchmarks.results --from=WORKDIR     # first add the numbers of a finished run or sweep

A block of a guide begins with <!-- results: NAME -->, for the file NAME.json, and ends with <!-- end -->.
Three blocks have no file: "summary" and "reading" are README.md's, and "metrics" is launch/metrics.md's,
from deepseek_jax/training/metric_names.py. A number within a sentence is between
<!-- cell: NAME ROW COLUMN --> and <!-- end -->. tests/benchmarks/result_tables.py describes the files.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.reading_list import reading
from tests.benchmarks.result_tables import block, cell_in_words, metrics, summary

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "results"
GUIDES = [
    ROOT / "README.md",
    *sorted(FOLDER.glob("*.md")),
    ROOT / "launch" / "metrics.md",
    Path(__file__).with_name("README.md"),
]
# Blocks without a file
WITHOUT_FILE = "summary", "reading", "metrics"
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.S)
CELL = re.compile(r"(<!-- cell: (\w+) (\d+) ([^>]+?) -->).*?(<!-- end -->)")
NUMBERS = re.compile(r"\[\s+((?:[-\d.e]+,?\s+)+)\]")


def read_results(folder=FOLDER, guides=GUIDES):
    """name -> the content of NAME.json, in the order of the guides' blocks."""
    shown = [name for guide in guides for _, name, _ in BLOCK.findall(guide.read_text())]
    order = {name: index for index, name in reversed(list(enumerate(shown)))}
    paths = sorted(folder.glob("*.json"), key=lambda path: order.get(path.stem, len(shown)))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def as_text(result):
    """Format a file's content as JSON with one line per cell."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    return NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def rewritten(text, results):
    """A guide's text with its blocks and cells updated. Raises ValueError for one without a file."""

    def known(name):
        if name not in results:
            allowed = ", ".join((*WITHOUT_FILE, *results))
            raise ValueError(f"<!-- results: {name} --> has no file; allowed: {allowed}")
        return results[name]

    def write(found):
        start, name, end = found.groups()
        if name == "summary":
            content = summary(results)
        elif name == "reading":
            content = reading()
        elif name == "metrics":
            content = metrics()
        else:
            content = block(known(name))
        return f"{start}{content}\n{end}"

    def write_cell(found):
        start, name, row, column, end = found.groups()
        return f"{start}{cell_in_words(known(name), int(row), column)}{end}"

    return CELL.sub(write_cell, BLOCK.sub(write, text))


def update_guides(results, guides, *, check=False):
    """Update the guides whose blocks are out of date: -> these guides. check: write nothing."""
    stale = []
    for guide in guides:
        old = guide.read_text()
        new = rewritten(old, results)
        if new != old:
            stale.append(guide)
            if not check:
                guide.write_text(new)
    return stale


def revision():
    """The commit of this checkout with its date; "-dirty" where a tracked file has changed since."""

    def git(*command):
        return subprocess.check_output(["git", *command], cwd=ROOT, text=True).strip()

    commit = git("describe", "--always", "--exclude=*", "--abbrev=7", "--dirty")
    return f"{commit} ({git('log', '-1', '--format=%cs')})"


def renew(workdir, version, folder=FOLDER):
    """Replace the rows of the same seeds by those of a finished run or sweep: -> the file.

    Raises ValueError for an unfinished run, a config that is not an experiment's, and where a row combines
    seeds of which the sweep has only some.
    """
    # Imported here, because it imports jax, which the tables do not need
    from tests.benchmarks import finished_run

    results = read_results(folder)
    name, rows = finished_run.read(Path(workdir), results)
    seeds = {seed for row in rows for seed in row["seed"].split(", ")}
    kept = []
    for row in results[name]["rows"]:
        own = set(row["seed"].split(", "))
        if own & seeds and own - seeds:
            raise ValueError(
                f"{workdir} has the seeds {', '.join(sorted(seeds))}, but a row of {name}.json combines "
                f"{row['seed']}; give the folder of a sweep over all of them"
            )
        kept += [] if own & seeds else [row]
    rows = kept + [row | {"version": version} for row in rows]
    results[name]["rows"] = sorted(rows, key=lambda row: row["seed"])
    path = folder / f"{name}.json"
    path.write_text(as_text(results[name]))
    return path


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--from", dest="workdir", metavar="WORKDIR")
    parser.add_argument("--version", help="what gave the run; default: this checkout's commit")
    given = parser.parse_args(arguments)
    try:
        if given.workdir is not None:
            print(f"{renew(given.workdir, given.version or revision())}: renewed")
        stale = update_guides(read_results(), GUIDES, check=given.check)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for guide in stale:
        print(f"{guide.relative_to(ROOT)}: {'out of date' if given.check else 'written'}")
    sys.exit(1 if given.check and stale else 0)


if __name__ == "__main__":
    main()
