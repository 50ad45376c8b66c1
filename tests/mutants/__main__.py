"""How many small faults do the tests catch? Plants one at a time and runs the tests that can see it.

    python -m tests.mutants --reach               # once: runs all tests to note which lines each reaches
    python -m tests.mutants --n=300 --seed=0      # resumes where it ended; up to 120 CPU seconds a mutant
    python -m tests.mutants --n=300 --seed=0 --list=survived
    python -m tests.mutants --module=rollout/slots.py   # do the tests of a module catch a fault of it? "all"

A mutant is caught by its room when a test of that room fails: that is the score, and "elsewhere" stands
beside it. judged.jsonl has the mutants that are equivalent ("equivalent"), or change speed, memory or wording
alone ("unscored"), each with its argument: neither kind counts.
"""

import argparse
import collections
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.mutants import held, trial
from tests.mutants.changes import mutants_of
from tests.mutants.reached import PACKAGE, Reach
from tests.mutants.trial import ROOT

WORK = ROOT / ".pytest_cache/mutants"
JUDGED = Path(__file__).with_name("judged.jsonl")
# What is mutated of each room; the tests of ROOM are those of tests/ROOM
ROOMS = {
    "ops": [""],
    "losses": [""],
    "models": [""],
    "parallel": [""],
    "training": ["update.py", "optimizer.py", "muon.py", "schedule.py", "micro_batches.py"],
    "rollout": [""],
    "reinforce": [""],
    "distill": [""],
    "rewards": [""],
    "evaluation": [""],
    "data": ["packing.py"],
}
COLUMNS = ["room", "mutants", "caught by its room", "elsewhere", "survived", "equivalent"]
COLUMNS += ["speed, memory or wording", "score", "at least", "CPU seconds"]


def sampled(room: str, number: int, seed: int) -> list:
    """Draw `number` mutants of a room without return; a larger number begins with the same ones."""
    found = []
    for name in ROOMS[room]:
        place = PACKAGE / room / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found += mutants_of(path, PACKAGE)
    random.Random(f"{seed} {room}").shuffle(found)
    return found[:number]


def note_what_tests_reach(folder: Path) -> int:
    """Run the default tests with the plugin `reached`: -> their exit status."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutants.reached", "tests"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"REACHED": str(folder)}).returncode


def trials(wanted: list, reach: Reach):
    """Yield ((room, Mutant), its Trial) of each (room, Mutant)."""
    for room, mutant in wanted:
        path, stages = PACKAGE / mutant.path, trial.stages_of(mutant, f"tests/{room}/", reach)
        planted = mutant.planted(path.read_bytes())
        yield (room, mutant), trial.Trial(str(path.relative_to(ROOT)), planted, stages)


def lower_bound(caught: int, number: int, z=1.645) -> float:
    """Wilson's lower bound of a share, one-sided at 95%."""
    if not number:
        return 0.0
    share, spread = caught / number, z * z / number
    half = z * math.sqrt(share * (1 - share) / number + spread / (4 * number))
    return (share + spread / 2 - half) / (1 + spread)


def table(wanted: list, known: dict, judged: dict) -> str:
    """The scores of (room, Mutant)s: a row for each room, and one for all."""
    rows = collections.defaultdict(collections.Counter)
    for room, mutant in wanted:
        if verdict := judged.get(mutant.name, known.get(mutant.name)):
            for row in (room, "all"):
                rows[row][verdict["is"]] += 1
                rows[row]["seconds"] += verdict.get("seconds", 0)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in filter(rows.get, [*ROOMS, "all"]):
        scored = [rows[row][kind] for kind in ("own", "elsewhere", "survived")]
        others = [rows[row][kind] for kind in ("equivalent", "unscored")]
        shares = scored[0] / max(sum(scored), 1), lower_bound(scored[0], sum(scored))
        cells = [row, sum(scored + others), *scored, *others, *(f"{share:.1%}" for share in shares)]
        cells.append(round(rows[row]["seconds"]))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def by_name(path: Path) -> dict:
    """The lines of a .jsonl file by their "name"; a later one replaces an earlier one."""
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return {line["name"]: line for line in lines}


def try_modules(given) -> int:
    """Print whether the tests of modules catch a fault of them: -> 1 where those of one catch none."""
    wanted = [m for m in held.modules() if given.module == "all" or given.module in str(m)]
    status = 0
    for module, tests, caught in held.try_modules(
        wanted, by_name(JUDGED), given.work, given.processes, given.seed
    ):
        print(
            f"{module}: {', '.join(tests) or 'NO TESTS'}: {getattr(caught, 'name', caught)}",
            flush=True,
        )
        status |= caught == "NOTHING" or not tests
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reach", action="store_true", help="note what each test reaches, and end")
    parser.add_argument("--n", type=int, default=300, help="mutants, the same number of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", default=",".join(ROOMS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=WORK, help="copies and verdicts")
    kinds = ["survived", "elsewhere", "own"]
    parser.add_argument("--list", choices=kinds, help="print these, and try none")
    parser.add_argument("--again", default="", help="try again the mutants with this in their name")
    parser.add_argument(
        "--module", default="", help="try the tests of the modules with this in their path"
    )
    given = parser.parse_args()
    if given.reach:
        sys.exit(note_what_tests_reach(given.work / "reached"))
    if given.module:
        sys.exit(try_modules(given))
    rooms = given.rooms.split(",")
    each = math.ceil(given.n / len(rooms))
    samples = [[(room, mutant) for mutant in sampled(room, each, given.seed)] for room in rooms]
    # One of each room in turn, so that a run that is ended early says something of all
    wanted = [sample[place] for place in range(each) for sample in samples if place < len(sample)]
    record, judged = given.work / "record.jsonl", by_name(JUDGED)
    known = by_name(record)
    if given.list:
        for room, mutant in wanted:
            if judged.get(mutant.name, known.get(mutant.name, {})).get("is") == given.list:
                print(f"{room}, line {mutant.number}: {mutant.name}")
    else:
        again = {name for name in known if given.again and given.again in name}
        done = known.keys() - again | judged.keys()
        wanted_now = [(room, mutant) for room, mutant in wanted if mutant.name not in done]
        asked = trials(wanted_now, Reach(given.work / "reached"))
        for (room, mutant), found in trial.try_all(asked, given.work, given.processes):
            verdict = {"room": room, "name": mutant.name, "kind": mutant.kind} | found
            print(verdict["is"], verdict["seconds"], verdict["name"], verdict["test"], flush=True)
            with open(record, "a") as file:
                file.write(json.dumps(verdict) + "\n")
            known[verdict["name"]] = verdict
    print(table(wanted, known, judged))


if __name__ == "__main__":
    main()
