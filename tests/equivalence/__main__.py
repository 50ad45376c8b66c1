"""One must give the same as another: runs of launch/train.py that differ in how they are computed.

    python -m tests.equivalence [--only=CLASS,CLASS]  # exit status 1 where a class does not hold
    python -m tests.equivalence --faults              # plants a fault for each class in a copy of the tree
    python -m tests.equivalence --keep                # writes what both have found into README.md

Compared are each step's metrics, what was sampled, each tensor's gradient at each step, and how far
training has moved each tensor. They are equal to the bit, or no tensor is further than TOLERANCE of its
norm, a sum of float32 in another order, and no residual leans to one side.

Why gradients: Adam makes a whole step of the rounding of a gradient that is nearly 0, so that equal runs
part. toy.py clips gradients far below Adam's epsilon: what is left is gradient descent. With b1=0 the state
that a run saves has the gradient.

A residual leans where a gradient is longer or shorter than the plain run's, or shifted: it keeps within a
tolerance, and moves the parameters to one side for as long as a run takes. So the residual of each tensor
is projected on the gradient itself and on a constant, in units of the gradient's norm. Elements of a tensor
share their rounding: a tensor, averaged over steps, is one observation. The mean over tensors has to be
within SIGMAS standard errors of 0, and one rounding more, because tensors share scalars, such as the norm
that clips them.
"""

import argparse
import collections
import concurrent.futures
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

import tests.conftest  # noqa: F401  sets the environment of all tests, before JAX is imported
from tests.equivalence.classes import CLASSES, FAULTS, PRETRAIN, Class
from tests.equivalence.runs import Run, left_by, write_inputs
from tests.mutants.trial import copy_tree, replaced
from tests.recipes.outcome import assert_close
from tests.reliability.conftest import put_table

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".pytest_cache/equivalence"
# Of a gradient's norm; of how far a tensor was moved, by all updates together
TOLERANCE, MOVED = 2e-5, 1e-4
SIGMAS, ROUNDING = 4, 2.0**-23
COLUMNS = ["class", "plain", "changed", "compared", "largest distance", "drift", "holds"]
COLUMNS += ["fault", "killed by"]
FAILED = {"distance": math.nan, "drift": "", "wrong": ["a run failed"]}
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def run_all(runs: set[Run], work: Path, processes: int) -> dict[Run, str]:
    """Make the runs anew, some at a time: -> {run: how it failed}."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_inputs(work)
    # The others begin with what it leaves
    PRETRAIN.do(work)
    shutil.copytree(PRETRAIN.folder(work) / "stage" / "params", work / "start")
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        done = {run: pool.submit(run.do, work) for run in runs}
    return {run: str(end.exception()) for run, end in done.items() if end.exception() is not None}


def compare(one: Class, work: Path) -> dict:
    """Compare the runs of a class: -> {"distance", "drift", "wrong": what does not hold, in words}."""
    folders = [run.folder(work) for run in (one.plain, one.changed)]
    plain, changed = map(left_by, folders)
    wrong = [*_programs(folders[1]), *_metrics(one, plain.lines, changed.lines)]
    try:
        assert_close(changed.texts, plain.texts, "texts")
    except AssertionError as error:
        wrong.append(" ".join(str(error).split())[:60])
    assert plain.gradients and plain.gradients.keys() == changed.gradients.keys()
    distance, worst = _farthest(plain.gradients, changed.gradients, plain.gradients)
    if distance > (0 if one.bits else TOLERANCE):
        wrong.append(f"gradient of {worst}: {distance:.1e}")
    moved, worst = _farthest(*_ends(plain, changed))
    if moved > (0 if one.bits else MOVED):
        wrong.append(f"parameter {worst}: {moved:.1e}")
    mean, error = drift(plain.gradients, changed.gradients)
    if abs(mean) > SIGMAS * error + ROUNDING:
        wrong.append(f"drift of {mean:.1e}")
    return {"distance": distance, "drift": f"{mean:.0e} ± {error:.0e}", "wrong": wrong}


def _programs(folder):
    """Of what classes.PROGRAMS leaves."""
    if not (folder / "ran.txt").exists():
        return []
    planned = json.loads((folder / "planned.json").read_text())
    return [] if (folder / "ran.txt").read_text() in planned else ["no program of the plan"]


def _metrics(one, plain, changed):
    for ours, theirs in zip(changed, plain, strict=True):
        if names := (ours.keys() ^ theirs.keys()) - set(one.other):
            return [f"metrics of one run: {', '.join(sorted(names))}"]
        for name in sorted(theirs.keys() & ours.keys() - {"phase", *one.other}):
            gap = abs(ours[name] - theirs[name])
            if gap > (0 if one.bits else TOLERANCE * (1 + abs(theirs[name]))):
                return [f"{name}: {ours[name]:.6g} for {theirs[name]:.6g}"]
    return []


def _ends(plain, changed):
    """The last parameters of both, and how far the plain run has moved them since its first update."""
    first, last = (pick(step for step, _ in plain.params) for pick in (min, max))
    paths = [path for step, path in plain.params if step == last]
    of_last = [
        {(last, path): left.params[last, path] for path in paths} for left in (plain, changed)
    ]
    return *of_last, {(last, p): plain.params[last, p] - plain.params[first, p] for p in paths}


def _farthest(plain, changed, unit):
    """(the largest distance of two tensors, in norms of `unit`; its path). unit: `plain` itself, or how far
    parameters were moved: those may also differ by their own rounding.
    """
    distances = {}
    for name, theirs in plain.items():
        distance, norm = np.linalg.norm(changed[name] - theirs), np.linalg.norm(unit[name])
        if unit is not plain:
            distance = max(0, distance - ROUNDING * np.linalg.norm(theirs))
        distances[name] = distance / norm if norm else float(distance > 0)
    worst = max(distances, key=distances.get)
    return float(distances[worst]), worst[1]


def drift(plain, changed):
    """(mean, standard error) over tensors of the residual's projection on the gradient, or on a constant: of
    the two the farther from 0.
    """
    found = []
    for direction in (np.copy, np.ones_like):
        of_tensors = collections.defaultdict(list)
        for (step, path), theirs in plain.items():
            along, residual = direction(theirs), changed[step, path] - theirs
            if norm := np.linalg.norm(theirs) * np.linalg.norm(along):
                of_tensors[path].append(np.vdot(residual, along) / norm)
        means = [np.mean(each) for each in of_tensors.values()]
        found.append((np.mean(means), np.std(means, ddof=1) / math.sqrt(len(means))))
    return max(found, key=lambda pair: abs(pair[0]) - SIGMAS * pair[1])


def try_fault(name: str, copy: Path) -> list[str]:
    """Plant the fault of a class in a copy of the tree and run the class there: -> what it finds wrong."""
    fault = FAULTS[name]
    path, original = (root / "deepseek_jax" / fault.file for root in (copy, ROOT))
    path.write_bytes(replaced(*fault))
    work = copy.with_name("of_copy")
    command = [sys.executable, "-m", "tests.equivalence", f"--only={name}", f"--work={work}"]
    done = subprocess.run(command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)})
    shutil.copy2(original, path)
    assert done.returncode in (0, 1)
    return json.loads((work / "record.json").read_text())[name]["wrong"]


def said(printed: str) -> list[str]:
    """What a run that failed said of it: the message of the program, where it has one."""
    messages = [line for line in printed.splitlines() if line.startswith("error: ")]
    return [textwrap.shorten(each, 80, placeholder="...") for each in messages] or FAILED["wrong"]


def row(name: str, found: dict) -> str:
    """A class's row of the table."""
    one, fault, killed = CLASSES[name], FAULTS[name], found.get("killed")
    what = "to the bit" if one.bits else f"within {TOLERANCE:.0e}, no drift"
    cells = [name, " ".join([one.plain.name, *one.plain.fields]), one.says, what]
    cells += [f"{found['distance']:.0e}", found["drift"], "; ".join(found["wrong"]) or "yes"]
    cells += [f"{fault.file}: `{fault.new}`"]
    cells += ["" if killed is None else killed[0] if killed else "nothing"]
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(CLASSES), help="classes, with commas")
    parser.add_argument("--faults", action="store_true", help="plant each class's fault")
    parser.add_argument("--keep", action="store_true", help="write the table, and run nothing")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--work", type=Path, default=WORK, help="runs, and what was found")
    given = parser.parse_args()
    os.chdir(ROOT)
    names, record = given.only.split(","), given.work / "record.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    if given.faults:
        copy = copy_tree(given.work / "copy")
        for name in names:
            known[name] = known.get(name, FAILED) | {"killed": try_fault(name, copy)}
            record.write_text(json.dumps(known))
    elif not given.keep:
        runs = {run for name in names for run in (CLASSES[name].plain, CLASSES[name].changed)}
        failed = run_all(runs, given.work / "runs", given.processes)
        print(*failed.values(), sep="\n")
        for name in names:
            one = CLASSES[name]
            printed = [failed[run] for run in (one.plain, one.changed) if run in failed]
            if printed:
                found = FAILED | {"wrong": said(printed[0])}
            else:
                found = compare(one, given.work / "runs")
            known[name] = known.get(name, {}) | found
        record.write_text(json.dumps(known))
    if given.keep:
        names = [name for name in CLASSES if name in known]
    table = HEAD + "".join(row(name, known[name]) for name in names)
    print(table)
    if given.keep:
        put_table(HEAD, table)
    sys.exit(any(known[name]["wrong"] or known[name].get("killed") == [] for name in names))


if __name__ == "__main__":
    main()
