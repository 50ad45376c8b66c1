"""Run one experiment several times, with different overrides, and report on all runs together.

    python launch/sweep.py --config=configs/r1_small.py[:ARG] --sweep=configs/sweeps/seeds.py
        [--config.FIELD=VALUE ...] [--workdir=FOLDER] [--jobs=1]

--sweep is a file with sweep(config) -> a list of {"FIELD": VALUE}, one a run; FIELD is a dotted field of the
config. Each run is a launch/train.py of its own, in a folder of its own below --workdir; its output goes to
NAME.log beside that folder. At most --jobs runs are active at once. Run it again to resume: a complete run is
not run again, unless its config has changed. If a run fails, it is named, the others continue, and the exit
status is 1. SIGTERM or Ctrl-C is passed on to the runs, and the exit status is 75 (start me again). A mistake
is one message and exit status 2.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags
from ml_collections import ConfigDict

from deepseek_jax.settings import build
from launch import common
from launch.config_file import load_function, set_field, split_arguments

TRAIN = Path(__file__).with_name("train.py")
# In the sweep's folder: name of a run -> the config that it completed with
COMPLETE = "complete.json"
# STOPPED as in training.loop
FAILED, STOPPED = 1, 75
POLL_SECONDS = 0.1


class Run(NamedTuple):
    """One run of a sweep. config: a dict, with the run's overrides, as JSON reads it back."""

    name: str
    overrides: dict
    config: dict


def define_flags():
    common.define_config()
    meaning = "FILE.py with sweep(config) -> a list of overrides."
    flags.DEFINE_string("sweep", None, meaning, required=True)
    flags.DEFINE_string("workdir", None, "The folder of the runs; default runs/CONFIG_SWEEP.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)


def sweep_runs(config: ConfigDict, overrides: list[dict], settings: type):
    """The runs of a sweep: list of Run. config: ConfigDict; overrides: list of {dotted field: value}.

    settings: the dataclass of the recipe's config. Raises ValueError where there are no runs, where two runs
    have the same name, and where a run's config does not fit the recipe.
    """
    runs = []
    for fields in overrides:
        name = _file_name(",".join(f"{k}={v}" for k, v in fields.items()))
        changed = config.copy_and_resolve_references()
        try:
            for field, value in fields.items():
                set_field(changed, field, value)
            build(settings, changed, "config")
        except ValueError as error:
            raise ValueError(f"--sweep: {name}: {error}") from error
        runs.append(Run(name, fields, json.loads(changed.to_json())))
    names = [run.name for run in runs]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"--sweep: every run needs overrides of its own, given {overrides}")
    if not runs:
        raise ValueError("--sweep: sweep(config) names no runs")
    return runs


def _file_name(text):
    return re.sub(r"[^\w=.,+-]", "_", text)


def run_all(runs: list[Run], workdir: Path, arguments: list[str], jobs: int, should_stop):
    """Start the runs that are not complete, `jobs` at a time: -> {name: exit status}, 0 for a complete run.

    arguments: of every launch/train.py; the run's own overrides and work directory follow them.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    complete = _complete(workdir)
    statuses = {run.name: 0 for run in runs if complete.get(run.name) == run.config}
    for name in statuses:
        print(f"{name}: complete, not run again", flush=True)
    waiting = [run for run in runs if run.name not in statuses]
    running, signalled = {}, False
    while running or (waiting and not should_stop()):
        while waiting and len(running) < jobs and not should_stop():
            run = waiting.pop(0)
            running[run.name] = run, _start(run, workdir, arguments), time.monotonic()
        # Once: a second signal would make a run exit without saving
        if should_stop() and not signalled:
            signalled = True
            for _, process, _ in running.values():
                process.send_signal(signal.SIGTERM)
        for name, (run, process, began) in list(running.items()):
            if process.poll() is not None:
                statuses[name] = process.returncode
                del running[name]
                _end(run, process.returncode, time.monotonic() - began, workdir)
        time.sleep(POLL_SECONDS)
    return statuses


def _start(run, workdir, arguments):
    log = workdir / f"{run.name}.log"
    own = [f"--config.{field}={value}" for field, value in run.overrides.items()]
    command = [sys.executable, TRAIN, *arguments, *own, f"--workdir={workdir / run.name}"]
    print(f"{run.name}: started; its output is in {log}", flush=True)
    # A run that is started again adds to its log
    with open(log, "a") as file:
        # A process group of its own: Ctrl-C reaches it once, through us
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def _end(run, status, seconds, workdir):
    if status:
        print(f"{run.name}: exit status {status}; see {workdir / run.name}.log", flush=True)
        return
    print(f"{run.name}: complete after {seconds:.0f} s", flush=True)
    fresh = workdir / f"{COMPLETE}.tmp"
    fresh.write_text(json.dumps(_complete(workdir) | {run.name: run.config}, indent=1))
    os.replace(fresh, workdir / COMPLETE)


def _complete(workdir):
    path = workdir / COMPLETE
    return json.loads(path.read_text()) if path.exists() else {}


def main(given):
    config, arguments = given
    values = flags.FLAGS
    name = f"{Path(values.config.partition(':')[0]).stem}_{Path(values.sweep).stem}"
    workdir = Path(values.workdir or Path("runs") / _file_name(name)).resolve()
    try:
        recipe = common.find_recipe(config.get("recipe"))
        overrides = load_function(values.sweep, "sweep", "--sweep")(config)
        runs = sweep_runs(config, overrides, recipe.SETTINGS)
    except ValueError as error:
        common.fail(error)
    should_stop = common.Stop()
    statuses = run_all(runs, workdir, arguments, values.jobs, should_stop)
    if should_stop():
        sys.exit(STOPPED)
    failed = [run.name for run in runs if statuses[run.name]]
    finished = [workdir / run.name for run in runs if run.name not in failed]
    if hasattr(recipe, "report_sweep") and finished:
        recipe.report_sweep(workdir, finished)
    if failed:
        message = f"error: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}"
        print(message, file=sys.stderr)
        sys.exit(FAILED)


def parse_flags(argv):
    """(the config, the arguments with which each run loads it)."""
    config = common.parse_config(argv)
    overrides, _ = split_arguments(flags.FLAGS.read_flags_from_files(argv, False))
    set_by_user = [f"--config.{field}={text}" for field, text in overrides]
    return config, [f"--config={flags.FLAGS.config}", *set_by_user]


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
