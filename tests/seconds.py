"""CPU seconds of the tests, by file and folder: what a run took, and the limit that it is held to.

    python -m tests.seconds            # print the last run's, by folder; exit 1 if they are above the limit
    python -m tests.seconds --keep     # take them as the record, after a quiet run

The record, seconds.json, gives the limit, and the order of the files: the longest first, so that no process
ends alone. Where it is not there yet, there is neither. The limit is higher by what was compiled, where the
record's run read it from the cache, and on a slower machine, by how much longer a fixed piece of work takes.
"""

import argparse
import collections
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

RECORD = Path(__file__).with_name("seconds.json")
LAST = Path(__file__).resolve().parents[1] / ".pytest_cache" / "seconds.json"
ABOVE = 1.2  # times what is expected
# CPU seconds that a program takes which is compiled and not read from the cache, where the record was made: a
# run that compiled all 16,979 took 1,360 to 1,550 more than one that read them
A_PROGRAM = 0.08
# Traces and compiles, as most tests do, and keeps nothing
WORK = """
import time, jax, jax.numpy as jnp
jax.config.update("jax_enable_compilation_cache", False)
def layers(x, number):
    for i in range(number):
        x = jnp.tanh(x @ x.T * (i + 1)) + jnp.sort(x, axis=-1)[:, :1]
    return x.sum()
began = time.process_time()
for number in (20, 21):
    jax.jit(jax.grad(layers), static_argnums=1)(jnp.ones((8, 8)), number)
print(time.process_time() - began)
"""


def cpu_seconds() -> float:
    """CPU seconds of this process and of those that it started and saw end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def programs() -> int:
    """Number of compiled programs in the cache of this run."""
    return len(list(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("*-cache")))


def recorded() -> dict:
    """The record: {"work": seconds of the fixed piece of work, "files": {file: seconds}}."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {"work": 1.0, "files": {}}


def work_seconds() -> float:
    """CPU seconds of the fixed piece of work: the median of three, as one may be off by a quarter."""
    return statistics.median(_work_seconds_once() for _ in range(3))


def _work_seconds_once():
    """Do the work in two processes at a time, as the tests are."""
    command = [sys.executable, "-c", WORK]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    return sum(float(process.communicate()[0]) for process in started) / 2


def folder_of(file: str) -> str:
    return "/".join(Path(file).parts[:2]) if len(Path(file).parts) > 2 else "tests"


def allowed_seconds(record: dict, compiled: int, work: float) -> float:
    """CPU seconds that a run may take which compiled so many programs, at this speed of work."""
    expected = sum(record["files"].values()) + compiled * A_PROGRAM
    return ABOVE * expected * work / record["work"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", action="store_true")
    keep = parser.parse_args().keep
    last, record, work = json.loads(LAST.read_text()), recorded(), work_seconds()
    folders = collections.Counter()
    for file, seconds in last["files"].items():
        folders[folder_of(file)] += seconds
    for folder, seconds in folders.most_common():
        print(f"{seconds:8.0f} s {folder}")
    total, compiled = sum(last["files"].values()), last["compiled"]
    print(f"{total:8.0f} CPU seconds, where a fixed piece of work takes {work:.1f}")
    print(f"{compiled:8} programs were compiled, the others read from the cache")
    if keep:
        files = {file: round(seconds, 1) for file, seconds in sorted(last["files"].items())}
        RECORD.write_text(json.dumps({"work": round(work, 1), "files": files}, indent=0) + "\n")
    elif record["files"]:
        limit = allowed_seconds(record, compiled, work)
        print(
            f"{limit:8.0f} CPU seconds are allowed, {ABOVE} times what is expected on this machine"
        )
        if total > limit:
            sys.exit(f"error: the tests take too long: compare {LAST} with {RECORD}")


if __name__ == "__main__":
    main()
