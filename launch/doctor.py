"""Check a machine: devices, memory, exchanges, and what its kernels compute.

    python launch/doctor.py [--json] [--workdir=FOLDER] [--distributed=auto|yes|no]
        [--rehearse=v5e|v5p|v6e|tpu7x|gpu]

Start it once on a new machine, on all hosts of a slice. It prints what each check found, and ends
with "12 of 12 checks hold". If a check does not hold, it ends with that check and what to do, and
the exit status is 1. It writes a checkpoint to FOLDER, by default runs, and removes it again.
--json prints a report instead of the lines.
"""

import contextlib
import json
import sys
from pathlib import Path

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deepseek_jax.installed import check_installed

check_installed()

from absl import flags

from deepseek_jax.errors import shortened
from deepseek_jax.files import absolute
from deepseek_jax.progress import on_stderr
from deepseek_jax.recipes.environment import prepare_process
from launch import common, distributed


def define_flags():
    """Define the program's flags."""
    flags.DEFINE_bool("json", False, "Print a report that a program can read.")
    flags.DEFINE_string("workdir", "runs", "The folder that takes a checkpoint.")
    distributed.define_flags()
    common.define_rehearse()


def main(argv):
    """Do the checks, print what they found, and exit with status 1 if one does not hold."""
    # With --json, only the report goes to standard output
    with on_stderr() if flags.FLAGS.json else contextlib.nullcontext():
        with common.one_message():
            prepare_process("")
            distributed.join_peers()
            common.rehearse()
            folder = absolute(flags.FLAGS.workdir)
        from deepseek_jax.parallel.processes import first_process, say

        results = list(report(folder))
        all_hold, ending = summary(results)
        if all_hold:
            say(ending)
    if flags.FLAGS.json and first_process():
        print(json.dumps(results, indent=2))
    if not all_hold:
        common.fail(ending, 1)


def report(folder: Path):
    """Do the checks, up to the first one that does not hold.

    Args:
        folder: One check writes a checkpoint there and removes it again.

    Yields:
        {"check", "holds", "found", "seconds"} for each check. seconds is None if it does not hold.
    """
    from deepseek_jax.parallel.mesh import make_mesh
    from deepseek_jax.parallel.processes import say
    from launch.check import look_at, of_processes
    from launch.machine_checks import of_machine

    mesh = make_mesh()
    checks = [*of_processes(mesh), *of_machine(mesh, folder)]
    findings = look_at(checks)
    for number, check in enumerate(checks, 1):
        try:
            _, finding, seconds = next(findings)
        # Any error is what the check is meant to find
        except Exception as error:
            message = shortened(str(error) or type(error).__name__)
            yield {"check": check.name, "holds": False, "found": message, "seconds": None}
            return
        say(f"{number:2} {check.name}: {finding}")
        yield {"check": check.name, "holds": True, "found": finding, "seconds": round(seconds, 2)}


def summary(results: list[dict]):
    """Summarise a report in a line.

    Args:
        results: The dicts that `report` yields.

    Returns:
        (whether all checks hold, the line that says so or names the check that does not).
    """
    *earlier, last_result = results
    if last_result["holds"]:
        return True, f"{len(results)} of {len(results)} checks hold"
    failure = f"{last_result['check']}: {last_result['found']}"
    return False, f"{len(earlier)} checks hold, and the next does not: {failure}"


if __name__ == "__main__":
    define_flags()
    common.run_program(main, common.parse_flags)
