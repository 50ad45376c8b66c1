"""Run one experiment several times, each with overrides of its own, and report on them together.

    python launch/sweep.py --config=configs/r1_small.py[:ARG] --sweep=configs/sweeps/seeds.py
        [--config.FIELD=VALUE ...] [--workdir=FOLDER] [--jobs=1]

--sweep is a file with sweep(config) -> a list of {"FIELD": VALUE}, dotted fields of the config, one a run.
Every run is a launch/train.py of its own, in a folder of its own below --workdir, its output beside it in a
file .log; --jobs of them run at a time. Run it again to go on: what is complete is not run again, unless its
config has changed. A run that fails is named, the others go on, and the exit status is 1; SIGTERM or Ctrl-C
is passed on, and the exit status is 75 (start me again). A mistake is one message and exit status 2.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs uninstalled

from absl import app, flags
from ml_collections import config_flags

from deepseek_jax import settings
from launch import train

TRAIN = Path(__file__).with_name("train.py")
COMPLETE = (
    "complete.json"  # in the sweep's folder: name of a run -> the config that it completed with
)
FAILED, STOPPED = 1, 75
POLL_SECONDS = 0.1


class Run(NamedTuple):
    """One run of a sweep. config: what JSON can say, with its overrides."""

    name: str
    overrides: dict
    config: dict


def define_flags():
    train.define_config()
    flags.DEFINE_string("sweep", None, "FILE.py with sweep(config) -> a list of overrides.")
    flags.DEFINE_string("workdir", None, "Where the runs are kept; default runs/CONFIG_SWEEP.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
    flags.mark_flags_as_required(["config", "sweep"])


def load_sweep(path):
    """The function `sweep` of a file. Raises ValueError where there is none."""
    if not Path(path).is_file():
        raise ValueError(f"--sweep={path} is no file; see configs/sweeps/")
    spec = importlib.util.spec_from_file_location("sweep_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "sweep"):
        raise ValueError(f"--sweep={path} has no function sweep(config)")
    return module.sweep


def sweep_runs(config, overrides):
    """The runs of a sweep: list of Run. config: ConfigDict; overrides: list of {dotted field: value}.

    Raises ValueError for no runs, two of one name, and a field that the config does not have or whose type
    is another.
    """
    runs = []
    for fields in overrides:
        name = re.sub(r"[^\w=.,+-]", "_", ",".join(f"{k}={v}" for k, v in fields.items()))
        changed = config.copy_and_resolve_references()
        try:
            for field, value in fields.items():
                _override(changed, field, value)
        except (LookupError, TypeError) as error:
            raise ValueError(f"--sweep: {name}: {error}") from error
        runs.append(Run(name, fields, json.loads(changed.to_json())))
    names = [run.name for run in runs]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"--sweep: every run needs overrides of its own, given {overrides}")
    if not runs:
        raise ValueError("--sweep: sweep(config) names no runs")
    return runs


def _override(config, field, value):
    *blocks, last = field.split(".")
    for block in blocks:
        config = config[block]
    if last not in config:
        raise LookupError(
            f"{last!r} is no field of the config; {settings.suggest(last, config)}; a default that the file "
            f"does not spell out comes in by --config.{field}=VALUE"
        )
    config[last] = value


def run_all(runs, workdir, arguments, jobs, should_stop):
    """Run what is not complete, `jobs` at a time: -> {name: exit status}, of complete ones 0.

    arguments: of launch/train.py, but for the overrides and the work directory.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    complete = _complete(workdir)
    statuses = {run.name: 0 for run in runs if complete.get(run.name) == run.config}
    for name in statuses:
        print(f"{name}: complete, not run again", flush=True)
    waiting = [run for run in runs if run.name not in statuses]
    running, told = {}, False
    while running or (waiting and not should_stop()):
        while waiting and len(running) < jobs and not should_stop():
            run = waiting.pop(0)
            running[run.name] = run, _start(run, workdir, arguments), time.monotonic()
        if should_stop() and not told:
            told = True
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


def main(argv):
    given, config = flags.FLAGS, flags.FLAGS.config
    path = config_flags.get_config_filename(given["config"])
    name = re.sub(r"[^\w=.,+-]", "_", f"{Path(path).stem}_{Path(given.sweep).stem}")
    workdir = Path(given.workdir or Path("runs") / name).resolve()
    try:
        recipe = train.find_recipe(config.get("recipe"))
        runs = sweep_runs(config, load_sweep(given.sweep)(config))
    except ValueError as error:
        train.fail(error)
    should_stop = train.Stop()
    statuses = run_all(runs, workdir, _config_arguments(argv), given.jobs, should_stop)
    if should_stop():
        sys.exit(STOPPED)
    failed = [run.name for run in runs if statuses[run.name]]
    report = getattr(recipe, "report_sweep", None)
    finished = [workdir / run.name for run in runs if run.name not in failed]
    if report is not None and finished:
        report(workdir, finished)
    if failed:
        print(
            f"error: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}", file=sys.stderr
        )
        sys.exit(FAILED)


def parse_flags(argv):
    """As in launch/train.py; the arguments stay, to be handed on."""
    train.parse_flags(argv)
    return argv


def _config_arguments(argv):
    """Those of the arguments that are about the config, in the one form "--config...=VALUE"."""
    arguments = [argument for argument in argv[1:] if argument.lstrip("-").startswith("config")]
    for argument in arguments:
        if "=" not in argument:
            train.fail(f"{argument}: write it as {argument}=VALUE")
    return arguments


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
