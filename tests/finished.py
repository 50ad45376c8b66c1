"""Toy runs that are trained once for all tests, by the first that asks, and only read.

A test that changes a run copies its folder first.
"""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

import jax
import pytest

from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.recipes.workdir import claim_workdir
from tests.recipes.small import run_recipe


class Finished:
    """Folders below base, which the processes of one pytest share."""

    def __init__(self, base: Path):
        self.base = base
        base.mkdir(exist_ok=True)

    def made(self, what: str, make):
        """The folder that make(folder) has filled. what: all that its content depends on."""
        if (
            "REACHED" in os.environ
        ):  # of tests.mutants: each file reaches the lines that its runs need
            what += os.environ["PYTEST_CURRENT_TEST"].partition("::")[0]
        folder = self.base / hashlib.sha256(what.encode()).hexdigest()[:16]
        done = folder.with_suffix(".done")
        with open(folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                # What one that failed has left
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    def run(self, config, replace=None, devices=1):
        """The work directory of a config's run, as launch leaves it. replace(patch): a function of a module,
        which replaces rules meanwhile.
        """

        def make(folder):
            mesh = make_mesh(devices=jax.devices()[:devices])
            with pytest.MonkeyPatch.context() as patch, claim_workdir(folder, config):
                if replace:
                    replace(patch)
                run_recipe(find_recipe(config.recipe), config, folder, mesh=mesh)

        named = replace and (replace.__module__, replace.__qualname__)
        return self.made(f"{config.to_json(sort_keys=True)} {named} {devices}", make)
