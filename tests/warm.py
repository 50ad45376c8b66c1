"""Programs of a test in processes of their own, which a warm interpreter forks.

It has imported the heavy packages and nothing of deepseek_jax, and has no backend: a program runs as in a
fresh interpreter, without the seconds of these imports. Not for what asks which modules a program imports.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import threading
import types
from multiprocessing import forkserver, process
from multiprocessing.reduction import DupFd
from pathlib import Path
from unittest import mock

HEAVY = "jax flax.linen optax orbax.checkpoint transformers tensorflow_datasets grain"
# tensorboardX imports torch where it is installed
HEAVY += " tensorboardX matplotlib scipy.special rich.console ml_collections absl.app"
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(HEAVY.split())


class Program(subprocess.Popen):
    """subprocess.Popen of Python with these arguments: a script or -c TEXT, and what the program gets."""

    def __init__(self, *args, **more):
        super().__init__(list(map(str, args)), text=True, **more)

    def _execute_child(self, args, _exe, _fn, _close, _fds, cwd, env, _i, _f, _sh, *ends, **_):
        # Of ends, both of stdin, of stdout and of stderr, these are the program's; -1 for ours
        theirs = [end if end == -1 else DupFd(end) for end in (ends[0], ends[3], ends[5])]
        env = dict(os.environ if env is None else env)
        given = args, cwd or os.getcwd(), env, theirs, ends[11]
        self._process = WARM.Process(target=_run, args=given)
        # A child would import it
        with mock.patch.multiple(
            sys.modules["__main__"], __spec__=None, __file__=None, create=True
        ):
            self._process.start()
        self.pid = self._process.pid
        self._close_pipe_fds(*ends[:6])

    def poll(self):
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


def run(*args, timeout=300, **more):
    """subprocess.run of Python with these arguments, with its texts: -> CompletedProcess."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with Program(*args, **pipes, **more) as program:
        try:
            out, err = program.communicate(timeout=timeout)
        finally:
            program.kill()
    return subprocess.CompletedProcess(program.args, program.returncode, out, err)


def stop():
    """End the interpreter, whose CPU seconds, with those of its programs, are then those of a child."""
    forkserver._forkserver._stop()


def _run(args, cwd, env, ends, new_session):
    for number, end in enumerate(ends):
        if end != -1:
            os.dup2(end.detach(), number)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    if new_session:
        os.setsid()
    os.chdir(cwd)
    # Where the program's own processes start
    process.ORIGINAL_DIR = os.getcwd()
    _set_environment(env)
    try:
        _execute(*args)
    finally:
        # As an interpreter ends; the second waits for workers, which end with the threads of the first. JAX
        # registered the last before the fork, which drops it: it waits for other processes of the run
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.modules["jax"].distributed.shutdown()


def _set_environment(env):
    import jax

    changed = {name for name, _ in env.items() ^ os.environ.items()}
    early = {n for n in changed if n.startswith("HF_") or n.lower() in jax.config.values}
    assert early <= {"JAX_PLATFORMS"}, f"packages have read {early}: take a fresh interpreter"
    # Set, or JAX searches for accelerators when it is imported
    jax.config.update("jax_platforms", env["JAX_PLATFORMS"])
    os.environ.clear()
    os.environ.update(env)
    # As Python does at its start
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]


def _execute(first, *args):
    """As Python does with its arguments."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if first == "-c":
        (text, *args), place = args, ""
    else:
        path = Path(first).absolute()
        text, place, main.__file__ = path.read_text(), str(path.parent), str(path)
    sys.argv = [first, *args]
    sys.path.insert(0, place)
    exec(compile(text, getattr(main, "__file__", "<string>"), "exec"), vars(main))
