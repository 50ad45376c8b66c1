"""How many small faults do the tests catch? Plants one at a time and runs the tests that can see it.

    python -m tests.mutants --reach                     # once: which lines each test reaches, as long as the tests take
    python -m tests.mutants --n=300 --seed=0            # goes on where it was ended; at most 120 CPU seconds a mutant
    python -m tests.mutants --rooms=ops,losses --n=60 --list=survived

A mutant is caught by its room when a test of that room fails: that is the score. "elsewhere" is beside it. What is
equivalent, or changes speed, memory or wording alone, stands in judged.jsonl with its argument and is not counted.
"""

import argparse
import collections
import dataclasses
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.mutants import trial
from tests.mutants.changes import mutants_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "deepseek_jax"
JUDGED = Path(__file__).with_name("judged.jsonl")
# What is mutated of a room; its tests are those of tests/ROOM
ROOMS = {
    "ops": [""],
    "losses": [""],
    "models": [""],
    "parallel": [""],
    "training": "update.py optimizer.py muon.py schedule.py micro_batches.py".split(),
    "rollout": [""],
    "reinforce": [""],
    "distill": [""],
    "rewards": [""],
    "evaluation": [""],
    "data": ["packing.py"],
}
# Imported once: a mutant's child begins with them
HEAVY = "jax flax.linen optax orbax.checkpoint numpy torch transformers safetensors.numpy ml_collections absl.flags hypothesis"


def mutants(room):
    """All mutants of a room."""
    for name in ROOMS[room]:
        place = PACKAGE / room / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            yield from mutants_of(path, PACKAGE)


def sampled(room, number, seed):
    """`number` mutants of a room, drawn without return; more of them go on where fewer ended."""
    found = list(mutants(room))
    random.Random(f"{seed} {room}").shuffle(found)
    return found[:number]


class Reach:
    """Which tests reach a line, from the files that the plugin `reached` left. seconds: {test: CPU seconds}."""

    def __init__(self, folder):
        self.seconds, self.by_line, self.by_file = {}, collections.defaultdict(set), collections.defaultdict(set)
        for path in sorted(folder.glob("*.json")):
            kept = json.loads(path.read_text())
            lines = [tuple(line) for line in kept["lines"]]
            for test, about in kept["tests"].items():
                if about["passed"] and "seconds" in about:
                    self.seconds[test] = about["seconds"]
                    for index in about["lines"]:
                        self.by_line[lines[index]].add(test)
                        self.by_file[lines[index][0]].add(test)

    def tests_of(self, mutant):
        """The tests that reach a mutant's line, or its file where the line runs at import."""
        if mutant.function and self.by_line[mutant.path, mutant.number]:
            return self.by_line[mutant.path, mutant.number]
        return self.by_file[mutant.path]

    def in_order(self, tests, first_files):
        """Tests file by file, the quick files and the quick tests of each first."""
        files = collections.defaultdict(list)
        for test in sorted(tests, key=self.seconds.get):
            files[trial.file_of(test)].append(test)

        def cost(file):
            return file not in first_files, sum(map(self.seconds.get, files[file])) / len(files[file])

        return [test for file in sorted(files, key=cost) for test in files[file]]


def reach(folder):
    """Run the default tests with the plugin that notes what each reaches."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = os.environ | {"REACHED": str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutants.reached", "tests"]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def copied(folder):
    """A copy of the working tree, with programs compiled so that a changed file is always compiled again."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode=checked-hash", "deepseek_jax"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


def run(wanted, reached, record, processes, work):
    """Try mutants that are not in the record yet, some at a time, and append each verdict to it."""
    copies = [copied(work / f"copy{number}") for number in range(processes)]
    sys.path[0:0] = [str(copies[0])]
    import importlib

    importlib.import_module("tests.conftest")
    for name in HEAVY.split():
        importlib.import_module(name)
    sys.path.remove(str(copies[0]))
    assert not [name for name in sys.modules if name.startswith("deepseek_jax")]
    waiting, running = list(reversed(wanted)), {}
    while waiting or running:
        while waiting and copies:
            copy, (room, mutant) = copies.pop(), waiting.pop()
            source = PACKAGE / mutant.path
            (copy / "deepseek_jax" / mutant.path).write_bytes(mutant.planted(source.read_bytes()))
            stages = trial.stages_of(mutant, f"tests/{room}/", reached)
            child = trial.begin(copy, stages, work / f"{copy.name}.json")
            running[child] = copy, room, mutant, time.monotonic()
        child, status, used = os.wait4(-1, 0)
        copy, room, mutant, began = running.pop(child)
        written = work / f"{copy.name}.json"
        result = json.loads(written.read_text()) if written.exists() else _ended(status, used)
        written.unlink(missing_ok=True)
        shutil.copy2(PACKAGE / mutant.path, copy / "deepseek_jax" / mutant.path)
        copies.append(copy)
        result = {"room": room, "name": mutant.name, "number": mutant.number, "kind": mutant.kind, **result}
        with open(record, "a") as file:
            file.write(json.dumps(result) + "\n")
        print(result.get("where", "error"), result.get("seconds"), mutant.name, result.get("test"), flush=True)


def _ended(status, used):
    """A child that a signal ended: out of memory or of time, or an abort of XLA."""
    by = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
    return {"where": "own", "test": by, "seconds": round(used.ru_utime + used.ru_stime, 1)}


def lower_bound(caught, number, z=1.645):
    """Wilson's lower bound of a share, one-sided at 95%."""
    if not number:
        return 0.0
    share = caught / number
    middle = share + z * z / (2 * number)
    half = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return (middle - half) / (1 + z * z / number)


def table(wanted, record, judged):
    """The score, a line for each room and one for all."""
    found = collections.defaultdict(collections.Counter)
    for room, mutant in wanted:
        verdict = record.get(mutant.name)
        if verdict is None:
            continue
        where = judged.get(mutant.name, {}).get("is") or verdict.get("where", "error")
        for row in (room, "all"):
            found[row][where] += 1
            found[row]["seconds"] += verdict.get("seconds", 0)
    print("| room | mutants | caught by its room | elsewhere | survived | equivalent | speed or wording | score | at least | CPU seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in [*ROOMS, "all"]:
        of = found[row]
        if not of:
            continue
        number = of["own"] + of["elsewhere"] + of["survived"] + of["error"]
        total = number + of["equivalent"] + of["unscored"]
        share = of["own"] / number if number else 0
        print(
            f"| {row} | {total} | {of['own']} | {of['elsewhere']} | {of['survived'] + of['error']} | {of['equivalent']} "
            f"| {of['unscored']} | {share:.1%} | {lower_bound(of['own'], number):.1%} | {of['seconds']:.0f} |"
        )


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reach", action="store_true", help="note which lines each test reaches, and end")
    parser.add_argument("--n", type=int, default=300, help="mutants in all, the same number of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", default=",".join(ROOMS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / ".pytest_cache" / "mutants", help="copies and the record")
    parser.add_argument("--list", default="", help="print the mutants with this verdict: survived, elsewhere, own")
    parser.add_argument("--only", default="", help="try again the recorded mutants whose name has this text")
    given = parser.parse_args()
    if given.reach:
        sys.exit(reach(given.work / "reached"))
    rooms = given.rooms.split(",")
    each = math.ceil(given.n / len(rooms))
    samples = [sampled(room, each, given.seed) for room in rooms]
    # Room by room in turn, so that a part of the whole says something of each room
    wanted = [
        (room, sample[place]) for place in range(each) for room, sample in zip(rooms, samples, strict=True) if place < len(sample)
    ]
    record = given.work / "record.jsonl"
    known = {each["name"]: each for each in lines_of(record)}
    judged = {each["name"]: each for each in lines_of(JUDGED)}
    if not given.list:
        open_ones = [
            (room, mutant) for room, mutant in wanted
            if (mutant.name not in known or (given.only and given.only in mutant.name)) and mutant.name not in judged
        ]
        run(open_ones, Reach(given.work / "reached"), record, given.processes, given.work)
        known = {each["name"]: each for each in lines_of(record)}
    for room, mutant in wanted:
        if given.list and known.get(mutant.name, {}).get("where") == given.list and mutant.name not in judged:
            print(f"{room} line {mutant.number}: {mutant.name}")
    table(wanted, known, judged)


if __name__ == "__main__":
    main()
