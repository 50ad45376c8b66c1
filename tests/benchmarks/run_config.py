"""Which experiment's config a run had."""

import importlib.util
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OVERRIDE = re.compile(r"--config\.([\w.]+)=")


def experiment_of(config, results):
    """The name of the experiment whose config this is, but for the fields that its command overrides.

    config: of a run's config.json. results: name -> content of configs/results/NAME.json. A run with other
    numbers would pass for the command's: it raises ValueError, with the nearest experiment and the fields.
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
        f"the run's config is that of no experiment of configs/results; the nearest is {nearest}, from which "
        f"it differs in config.{', config.'.join(fewest[:5])}"
    )


def _load_config(reference, seed):
    """The config of FILE:ARG with this seed, as a run's config.json has it."""
    path, _, arg = reference.partition(":")
    spec = importlib.util.spec_from_file_location(f"experiment_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return json.loads(module.get_config(f"{arg},seed={seed}".strip(",")).to_json())


def _fields(tree, path=""):
    """{dotted name: value} of every field that is no block."""
    if not isinstance(tree, dict):
        return {path: tree}
    fields = {}
    for name, value in tree.items():
        fields |= _fields(value, f"{path}.{name}" if path else name)
    return fields
