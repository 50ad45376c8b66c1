"""The runs of a sweep: the overrides in its file, each checked against the recipe's settings."""

import contextlib
import hashlib
import io
import json
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from deepseek_jax.errors import at
from deepseek_jax.named_code import code_digests
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.recipes.experiment_file import as_config, set_field
from deepseek_jax.settings import build

# File systems allow 255 characters, and a run's files add endings to its name
LONGEST_NAME = 200


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
        overrides: {dotted field: value}.
        config: The whole config with the overrides: a dict, as JSON reads it back.
        code: {FILE.py or package.module that the config names: digest of its text}.
    """

    name: str
    overrides: dict
    config: dict
    code: dict = {}

    @property
    def record(self):
        """What identifies a run: its config and its code. Other code makes it another run."""
        return self.config | ({"code": self.code} if self.code else {})


def sweep_runs(config: ConfigDict, overrides: list[dict], settings: type):
    """Return the Runs of a sweep.

    Args:
        config: The config without overrides.
        overrides: What the sweep's file returned: a {dotted field: value} for each run.
        settings: The dataclass of the recipe's config.

    Raises:
        ValueError: There are no runs, two runs have the same name, a run's config does not fit the
            recipe, or the overrides are not a list of dicts.
    """
    runs = []
    if not isinstance(overrides, (list, tuple)) or not all(map(_are_overrides, overrides)):
        raise ValueError(
            f"--sweep: sweep(config) returned {overrides!r}; it must return a list of dicts, "
            '{"FIELD": VALUE} for each run'
        )
    for fields in overrides:
        name = file_name(",".join(f"{k}={v}" for k, v in fields.items()))
        run_config = config.copy_and_resolve_references()
        try:
            for field, value in fields.items():
                set_field(run_config, field, value)
            code = code_digests(build(settings, run_config, "config"))
        except ValueError as error:
            raise ValueError(f"--sweep: {name}: {error}") from error
        runs.append(Run(name, fields, json.loads(run_config.to_json()), code))
    names = [run.name for run in runs]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"--sweep: every run needs overrides of its own, given {overrides}")
    if not runs:
        raise ValueError("--sweep: sweep(config) names no runs; return at least one dict of fields")
    return runs


def _are_overrides(fields):
    return isinstance(fields, dict) and all(isinstance(name, str) for name in fields)


def file_name(text: str):
    """Return the text as a file's name; a hash replaces the end of a long one."""
    name = re.sub(r"[^\w=.,+-]", "_", text)
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def train_arguments(run: Run, workdir: Path, shared: list[str]):
    """Return the arguments of the run's launch/train.py.

    Args:
        shared: Arguments of every run. The run's overrides come after them.
    """
    override_flags = [f"--config.{field}={value}" for field, value in run.overrides.items()]
    return [*shared, *override_flags, f"--workdir={workdir / run.name}"]


def check_data(runs: list[Run]):
    """Read the data of each run, but no checkpoint.

    Raises:
        ValueError: Data are not there; the message names the run.
    """
    # One folder for all, so that a dataset of several runs is built once. TFDS prints what it
    # builds, so its output is dropped
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for run in runs:
            try:
                with at("config"):
                    _describe(as_config(run.config), Path(folder))
            except ValueError as error:
                raise ValueError(f"--sweep: {run.name}: {error}") from error


def _describe(config, folder):
    from deepseek_jax.recipes import driver

    recipe = find_recipe(config.get("recipe"))
    return driver.describe_data(recipe, build(recipe.SETTINGS, config, "config"), folder)
