"""Finds the experiment that a run belongs to, by its config."""

import importlib.util
import json
import re
from pathlib import Path

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
        if "config" not in result:
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


def _load_config(reference, seed):
    """The config of FILE:ARG with this seed, in the form of a run's config.json."""
    path, _, arg = reference.partition(":")
    spec = importlib.util.spec_from_file_location(f"experiment_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return json.loads(module.get_config(f"{arg},seed={seed}".strip(",")).to_json())


def _fields(tree, path=""):
    """{dotted name: value} of every field that is not a block."""
    if not isinstance(tree, dict):
        return {path: tree}
    fields = {}
    for name, value in tree.items():
        fields |= _fields(value, f"{path}.{name}" if path else name)
    return fields
