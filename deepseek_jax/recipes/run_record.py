"""run.json: the stage that a run is for, its models, and what each of its starts ran with."""

import datetime
import functools
import importlib.metadata
import json
import os
import platform as python_platform
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from deepseek_jax.checkpoint.left import RUN
from deepseek_jax.files import read_object, write_whole
from deepseek_jax.models.network_config import Network
from deepseek_jax.ops import platform
from deepseek_jax.programs import home


class RunRecord:
    """The file run.json of a run that works; only process 0 has one.

    Its field `starts` has a dict for each start, with the fields of `start_facts`, the date and the
    seconds of work. A start with the same fields as the one before continues that entry. Seconds of
    a process that was killed count up to its last `save`.

    Args:
        folder: The folder of the run.
        stage: The name of the stage that the run is for, or None.
        models: {stage: the result of model_facts} of the policies that the run is for.
        start: What this start runs with.
    """

    def __init__(self, folder: Path, stage: str | None, models: dict, start: dict[str, str]):
        self._file = folder / RUN
        starts = read_run_record(folder).get("starts", [])
        if not starts or {name: starts[-1].get(name) for name in start} != start:
            starts.append(start | {"date": datetime.date.today().isoformat(), "seconds": 0.0})
        self._content = {"stage": stage, "models": models, "starts": starts}
        self._start, self._seconds_before = starts[-1], starts[-1]["seconds"]
        self._began = time.monotonic()
        self.save()

    def save(self):
        """Write the file, with the seconds until now."""
        seconds = self._seconds_before + time.monotonic() - self._began
        self._start["seconds"] = round(seconds, 1)
        write_whole(self._file, json.dumps(self._content, indent=1) + "\n")


def read_run_record(folder: Path) -> dict[str, Any]:
    """Read run.json; {} if a run has none."""
    file = folder / RUN
    return read_object(file) if file.exists() else {}


def model_facts(
    config: Network, num_params: int, checkpoint: str | Path | None = None
) -> dict[str, Any]:
    """Return a model's architecture and number of parameters, and the checkpoint it began from."""
    source = {} if checkpoint is None else {"checkpoint": str(checkpoint)}
    return {"architecture": config.model_type, "parameters": num_params} | source


def start_facts(mesh: Mesh, started_by: dict[str, str]) -> dict[str, str]:
    """Return what a start runs with: the command, versions, devices.

    Args:
        mesh: The mesh of the run.
        started_by: The experiment and the command; {} if no program started the run.
    """
    versions = {"python": python_platform.python_version(), "jax": jax.__version__}
    return started_by | code_version() | versions | {"devices": described_devices(mesh)}


def described_devices(mesh: Mesh) -> str:
    """Describe the devices of a mesh in words."""
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    if platform.rehearsed is None:
        return devices
    return f"{devices}, a rehearsal of {platform.rehearsed}: its numbers are no results"


@functools.cache
def code_version() -> dict[str, str]:
    """Return the commit of this checkout, with "-dirty" if a file differs; else the release.

    It is {} for a copy of the sources that is neither a checkout nor installed.
    """
    # Without its own .git, git would describe a repository around site-packages
    if (home() / ".git").exists():
        command = "git describe --always --exclude=* --abbrev=8 --dirty".split()
        # So that git takes no lock in a checkout that others use
        environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        try:
            done = subprocess.run(
                command, cwd=home(), env=environment, capture_output=True, text=True, check=True
            )
            return {"commit": done.stdout.strip()}
        # No git on this machine, or it does not trust the checkout's owner
        except (OSError, subprocess.CalledProcessError):
            pass
    try:
        return {"release": importlib.metadata.version("deepseek_jax")}
    except importlib.metadata.PackageNotFoundError:
        return {}
