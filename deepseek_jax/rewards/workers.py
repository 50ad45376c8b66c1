"""Worker processes for code that may hang, crash or fill the memory: rewards, tools and environments.

The processes import no jax, and killing one loses nothing else.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess

from deepseek_jax.named_code import require_no_import

WORKER_BYTES = 4 * 2**30


# Not pebble's pool: it gives the next call to a worker that was just killed, so `run` would have to repeat it
class WorkerPool:
    """Calls a function in `num_workers` processes, each call under a wall-clock limit.

    work, start: module-level functions; a process calls work for each job, and start once at its beginning.
    A call that lasts longer than wall_limit_seconds ends its process, even while it is in C code.
    Use it as a context manager, or call close().
    """

    def __init__(
        self,
        work: Callable,
        start: Callable,
        *start_args,
        num_workers: int,
        wall_limit_seconds: float,
    ):
        self.num_workers, self.wall_limit_seconds = num_workers, wall_limit_seconds
        self._work, self._start = work, (start, *start_args)
        self._pool = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def lost(self):
        """In words, why a call has no result."""
        return f"it ended its process, or took more than {self.wall_limit_seconds:.0f} s"

    def close(self):
        """End the worker processes. The next run() starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def ask(self, *args):
        """What work(*args) returns. Raises ValueError with what it raised, or why it returned nothing."""
        result = self.run({0: args}).get(0, ValueError(self.lost()))
        if isinstance(result, Exception):
            raise ValueError(str(result))
        return result

    def run(self, jobs: Mapping):
        """Call work(*args) for every key -> args of `jobs`.

        Returns a dict of key -> result, or the exception that the call raised. A call that killed its process
        has no key in it.
        """
        results = self._run(jobs)
        for key in [key for key in jobs if key not in results]:
            # Lost when a worker died, perhaps by another job: run each alone, so only the culprit is lost
            results |= self._run({key: jobs[key]})
        return results

    def _run(self, jobs):
        """Results of `jobs`, without those that ran or waited when a worker died."""
        if self._pool is None:
            self._pool = make_processes(self.num_workers, *self._start)
        futures = {}
        try:
            for key, args in jobs.items():
                futures[key] = self._pool.submit(
                    _watched, self.wall_limit_seconds, self._work, args
                )
        # Jobs already submitted fail alike, and the others have no result: run() repeats them all
        except BrokenProcessPool:
            pass
        wait(futures.values())
        results = {key: future.exception() or future.result() for key, future in futures.items()}
        broken = any(isinstance(result, BrokenProcessPool) for result in results.values())
        # A pool that lost a worker accepts no more jobs: the next run starts another one
        if broken or len(futures) < len(jobs):
            self.close()
        return {
            key: result
            for key, result in results.items()
            if not isinstance(result, BrokenProcessPool)
        }


class _Process(SpawnProcess):
    """A fresh process that does not import the main module again: a script would run once more there."""

    @staticmethod
    def _Popen(process):
        with _no_main():
            return SpawnProcess._Popen(process)


class _Spawn(SpawnContext):
    Process = _Process


# How every worker process starts. Not fork, which is unsafe in a process where jax has started threads
SPAWN = _Spawn()
_starting = threading.Lock()


@contextlib.contextmanager
def _no_main():
    """Hide where the main module came from, which is what multiprocessing sends to a new process."""
    main = vars(sys.modules["__main__"])
    with _starting:
        hidden = {name: main.pop(name) for name in ("__spec__", "__file__") if name in main}
        main["__spec__"] = None
        try:
            yield
        finally:
            main.update(hidden)


def make_processes(num_workers: int, start: Callable, *start_args):
    """An executor whose processes begin by start(*start_args), have little memory and end with this one.

    Raises ValueError while a file is imported for a function in it: its worker would start the same again.
    """
    require_no_import("starts worker processes")
    return ProcessPoolExecutor(num_workers, SPAWN, _start_worker, (start, *start_args))


@contextlib.contextmanager
def watched(seconds: float):
    """End this process if the body takes longer, even while it is in C code."""
    with open(os.devnull, "w") as nowhere:
        # A Python signal handler waits until a long call in C returns; this timer ends the worker anyway
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _start_worker(start, *start_args):
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A call that would fill the memory then fails in this process alone
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    # The main process handles Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start(*start_args)


def _end_with_parent():
    # A parent that was killed has closed nothing: the worker would wait for its next job for ever
    multiprocessing.parent_process().join()
    os._exit(1)


def _watched(wall_limit_seconds, work, args):
    with watched(wall_limit_seconds):
        return work(*args)
