"""Finds the experiment that a run or a sweep belongs to, by its config."""

import importlib.util
import json
import re
from pathlib import Path

from deepseek_jax.recipes.experiment import find_recipe
from launch.sweeps.runs import sweep_runs

ROOT = Path(__file__).resolve().parents[2]
OVERRIDE = re.compile(r"--config\.([\w.]+)=")


def experiment_of(config, results):
    """The name of the experiment with this config, apart from the fields that its command overrides.

    config: from a run's config.json. results: name -> content of configs/results/NAME.json. Raises ValueError
    for a config with other numbers, with the nearest experiment and the fields that differ: such a run must
    not appear as the result of the command.
    """
    given, nearest, fewest = _fields(config), None, []
    for name, result in results.items():
        # One run of a sweep is no result of its command
        if "config" not in result or "sweep" in result:
            continue
        wanted = _fields(_load_config(result["config"], config["seed"]))
        free = tuple(OVERRIDE.findall(result["command"]))
        names = (field for field in wanted | given if not field.startswith(free))
        differing = sorted(field for field in names if wanted.get(field) != given.get(field))
        if not differing:
            return name
        if nearest is None or len(differing) < len(fewest):
            nearest, fewest = name, differing
    raise ValueError(
        f"the run's config matches no experiment of configs/results; the nearest is {nearest}, from which it "
        f"differs in config.{', config.'.join(fewest[:5])}"
    )


def sweep_of(complete, results):
    """(name, runs) of the experiment whose sweep has these runs; (None, []) where no sweep has any of them.

    complete: name of a run -> its config. runs: list of launch.sweeps.runs.Run. Raises ValueError where some
    of the sweep's runs are missing.
    """
    for name, result in results.items():
        if "sweep" not in result:
            continue
        config = _load(result["config"]).get_config()
        overrides = _load(result["sweep"]).sweep(config)
        runs = sweep_runs(config, overrides, find_recipe(config.recipe).SETTINGS)
        missing = [run.name for run in runs if complete.get(run.name) != run.config]
        if not missing:
            return name, runs
        if len(missing) < len(runs):
            raise ValueError(
                f"the sweep of {name} has {len(runs)} runs, and these are not complete with its numbers: "
                f"{', '.join(missing)}; run it again: {result['command']}"
            )
    return None, []


def _load_config(reference, seed):
    """The config of FILE:ARG with this seed, in the form of a run's config.json."""
    path, _, arg = reference.partition(":")
    return json.loads(_load(path).get_config(f"{arg},seed={seed}".strip(",")).to_json())


def _load(path):
    """The Python file at this path, below ROOT unless it is absolute."""
    spec = importlib.util.spec_from_file_location(f"experiment_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _fields(tree, path=""):
    """{dotted name: value} of every field that is not a block."""
    if not isinstance(tree, dict):
        return {path: tree}
    fields = {}
    for name, value in tree.items():
        fields |= _fields(value, f"{path}.{name}" if path else name)
    return fields
