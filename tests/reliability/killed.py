"""A recipe at toy size in a process of its own, which kills itself with SIGKILL at a moment chosen before.

    python -m tests.reliability.killed CASE WORKDIR MOMENT [PROCESS PORT]

CASE: of tests.recipes.cases. MOMENT: KIND:NUMBER:SECONDS, so many seconds after the NUMBERth moment of a kind
in this process, or "never"; with WORKERS before it, workers of rewards are killed in place of the process.
PROCESS, PORT: of a run of two processes. Each change of a file in the work directory has a moment just before
it; a call for more tokens is one, and an update that has begun. Where the run ends first, the process prints
how many it had of each kind, as JSON.
"""

import collections
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import threading

import jax
import pytest

from deepseek_jax.recipes.experiment import run_recipe
from deepseek_jax.rollout import engine
from deepseek_jax.training import log
from tests.recipes.cases import CASES

NEVER, WORKERS = "never", "workers "
# Audit events (PEP 578) of what changes files
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# A moment is of the first kind with a function under way in its thread. The files of each kind
KINDS = {
    "save": ("checkpoint/store.py", "checkpoint/orbax_params.py", "checkpoint/adapter.py"),
    "evaluation": (
        "training/remembered.py",
        "deepseek_jax/evaluation/",
        "evaluate/run.py",
        "r1/scores.py",
        "distill/measure.py",
    ),
    "rollout": ("deepseek_jax/rollout/",),
    "update": ("training/loop.py", "training/log.py"),
}


class Moments:
    """Counts moments, and calls kill(seconds) at one of them. at: (kind, number, seconds) or None."""

    def __init__(self, workdir: str, at, kill):
        self.workdir, self.at, self.kill = workdir, at, kill
        self.counts, self.lock = collections.Counter(), threading.Lock()

    def audit(self, event, arguments):
        """A hook of sys.addaudithook."""
        changes = event in CHANGES or (event == "open" and _writes(arguments))
        if changes and str(arguments[0]).startswith(self.workdir):
            self.add("save" if "orbax-checkpoint-tmp" in str(arguments[0]) else _kind("files"))

    def before(self, function):
        """The function, each of whose calls is a moment."""

        def call(*args, **kwargs):
            self.add(_kind("files"))
            return function(*args, **kwargs)

        return call

    def add(self, kind):
        with self.lock:
            self.counts[kind] += 1
            due = self.at is not None and (kind, self.counts[kind]) == self.at[:2]
        if not due:
            return
        if not self.at[2]:
            self.kill()
        else:
            threading.Timer(self.at[2], self.kill).start()


def _writes(arguments):
    _, mode, flags = arguments
    return bool(flags & WRITES) if mode is None else any(letter in mode for letter in "wxa+")


def _kind(other):
    frame, found = sys._getframe(2), set()
    while frame is not None:
        name = frame.f_code.co_filename
        found |= {kind for kind, rooms in KINDS.items() if any(room in name for room in rooms)}
        frame = frame.f_back
    return next((kind for kind in KINDS if kind in found), other)


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_workers():
    workers = multiprocessing.active_children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    print("killed workers:", len(workers), flush=True)


def main(name, workdir, moment, process=None, port=None):
    at = None
    if moment != NEVER:
        kind, number, seconds = moment.removeprefix(WORKERS).split(":")
        at = kind, int(number), float(seconds)
    kill = _kill_workers if moment.startswith(WORKERS) else _kill
    moments, case, folder = Moments(workdir, at, kill), CASES[name], pathlib.Path(workdir)
    if process is not None:
        # The peer of a killed process ends when this has passed; JAX's own is 100 s
        place = dict(num_processes=2, process_id=int(process), heartbeat_timeout_seconds=10)
        jax.distributed.initialize(f"127.0.0.1:{port}", **place)
    with pytest.MonkeyPatch.context() as patch:
        case.replace(patch)
        config = case.config(folder.parent)
        sys.addaudithook(moments.audit)
        patch.setattr(engine.Engine, "decode", moments.before(engine.Engine.decode))
        patch.setattr(log.Log, "add", moments.before(log.Log.add))
        run_recipe(config, folder)
    print(json.dumps(moments.counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
