"""Toy runs by launch/train.py, each in processes of its own, and what they leave."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from deepseek_jax.training.lines import read_lines
from tests.equivalence.toy import CLIPPED
from tests.processes import run_two
from tests.recipes.outcome import load_arrays, without_clocks

STARTS = """
import runpy, sys
{before}
sys.argv[0] = "train.py"
runpy.run_path("launch/train.py", run_name="__main__")
"""
JOINS = """
import jax, sys
process, port = sys.argv[1:3]
del sys.argv[1:3]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
"""
STOPS = """
import signal
from deepseek_jax.training.metrics import MetricsWriter
def write(self, step, *arguments, _write=MetricsWriter.write, **named):
    _write(self, step, *arguments, **named)
    step or signal.raise_signal(signal.SIGTERM)
MetricsWriter.write = write
"""
STOPPED = 75
SAMPLED = "text", "length", "reward", "advantage"


def write_inputs(work: Path):
    """The documents of toy.py, in a folder: of up to 30 bytes, and of 7 bytes and an end token."""
    rng = random.Random(0)
    for name, sizes, number in (("texts", range(4, 31), 500), ("even", (7,), 316)):
        texts = ("".join(rng.choices("abcdefgh ", k=rng.choice(sizes))) for _ in range(number))
        lines = [json.dumps({"text": text}) for text in texts]
        (work / f"{name}.jsonl").write_text("\n".join(lines))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of toy.py. fields: FIELD=VALUE of its config. devices: of each of its processes. before: Python
    that they run first, for what no field sets. stops: a signal at its first line stops it; it is resumed.
    """

    name: str
    fields: tuple[str, ...] = ()
    devices: int = 1
    processes: int = 1
    before: str = ""
    stops: bool = False

    def folder(self, work: Path):
        """Where the run lies."""
        return work / f"{self.name}_{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}"

    def do(self, work: Path):
        """Run it, unless its folder is there. Raises RuntimeError with what it printed."""
        folder, part = self.folder(work), self.folder(work).with_suffix(".part")
        if folder.exists():
            return
        shutil.rmtree(part, ignore_errors=True)
        if self.stops:
            self._start(part, STOPS, STOPPED)
        self._start(part, self.before, 0)
        part.rename(folder)

    def _start(self, folder, before, status):
        flags = f"--xla_force_host_platform_device_count={self.devices}"
        arguments = [f"--config=tests/equivalence/toy.py:run={self.name},work={folder.parent}"]
        arguments += [f"--workdir={folder}", *(f"--config.{field}" for field in self.fields)]
        program = STARTS.format(before=before)
        if self.processes == 2:
            statuses, outputs = run_two(JOINS + program, *arguments, xla_flags=flags)
        else:
            env = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}"}
            command = [sys.executable, "-c", program, *arguments]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            statuses, outputs = [done.returncode], [done.stdout + done.stderr]
        if set(statuses) != {status}:
            raise RuntimeError(f"{self} ended with {statuses}: " + "\n".join(outputs)[-3000:])


class Left(NamedTuple):
    """What a run leaves. lines: of metrics.jsonl, without clocks. texts: of what was sampled, [text, length,
    reward, advantage] of each. gradients, params: {(step, path): array}, of the last update of each step.
    """

    lines: list
    texts: list
    gradients: dict
    params: dict


def left_by(folder: Path) -> Left:
    """What the run in a folder has left."""
    lines = without_clocks(read_lines(folder / "metrics.jsonl"), folder)
    groups = read_lines(folder / "completions.jsonl")
    texts = [[each[name] for name in SAMPLED] for group in groups for each in group["completions"]]
    gradients, params = {}, {}
    for checkpoint in folder.glob("*/checkpoints/[0-9]*"):
        step = int(checkpoint.name)
        (norm,) = (line["grad_norm"] for line in lines if line["step"] == step - 1)
        for keys, array in jax.tree.leaves_with_path(load_arrays(checkpoint)):
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            if path.startswith("params/"):
                params[step, path.removeprefix("params/")] = np.asarray(array)
            elif "/mu/" in path:
                # With b1=0 the moment is the gradient, after clipping by its norm
                gradients[step, path.partition("/mu/")[2]] = np.float64(array) * norm / CLIPPED
    return Left(lines, texts, gradients, params)
