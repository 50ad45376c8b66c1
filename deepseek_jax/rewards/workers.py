"""Worker processes for code that may hang, crash or fill the memory: rewards, tools, environments.

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


# Not pebble's pool: it gives the next call to a worker that was just killed, so `run` would have to
# repeat it
class WorkerPool:
    """Pool of processes that call a function, each call under a limit of wall-clock time.

    Use it as a context manager, or call close().

    Args:
        work: A module-level function. A process calls it for each job.
        start: A module-level function. A process calls it once, at its beginning.
        *start_args: The arguments of `start`.
        num_workers: Number of processes.
        wall_limit_seconds: A call that lasts longer ends its process, even while it is in C code.
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
        """Return in words why a call has no result."""
        return f"it ended its process, or took more than {self.wall_limit_seconds:.0f} s"

    def close(self):
        """End the worker processes. The next run() starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def ask(self, *args):
        """Call work(*args) and return its result.

        Raises:
            ValueError: With the message of what `work` raised, or with the reason why it has no
                result.
        """
        result = self.run({0: args}).get(0, ValueError(self.lost()))
        if isinstance(result, Exception):
            raise ValueError(str(result))
        return result

    def run(self, jobs: Mapping):
        """Call work(*args) for every key -> args of `jobs`.

        Returns:
            key -> result, or the exception that the call raised. A call that killed its process has
            no key.
        """
        results = self._run(jobs)
        for key in [key for key in jobs if key not in results]:
            # The job was lost when a worker died, perhaps through another job. Run each one
            # separately, so that only the culprit is lost
            results |= self._run({key: jobs[key]})
        return results

    def _run(self, jobs):
        """Return the results of `jobs`, except for jobs that ran or waited when a worker died."""
        if self._pool is None:
            self._pool = make_processes(self.num_workers, *self._start)
        futures = {}
        try:
            for key, args in jobs.items():
                futures[key] = self._pool.submit(
                    _watched, self.wall_limit_seconds, self._work, args
                )
        # Jobs already submitted fail with the same error, and the others have no result: run()
        # repeats them all
        except BrokenProcessPool:
            pass
        wait(futures.values())
        results = {key: future.exception() or future.result() for key, future in futures.items()}
        broken = any(isinstance(result, BrokenProcessPool) for result in results.values())
        # A pool that lost a worker accepts no more jobs: the next run starts another pool
        if broken or len(futures) < len(jobs):
            self.close()
        return {
            key: result
            for key, result in results.items()
            if not isinstance(result, BrokenProcessPool)
        }


class _Process(SpawnProcess):
    """A fresh process that does not import the main module: a script would run once more there."""

    @staticmethod
    def _Popen(process):
        with _no_main():
            return SpawnProcess._Popen(process)


class _Spawn(SpawnContext):
    Process = _Process


# Every worker process starts like this. Not by fork, which is unsafe in a process where jax has
# started threads
SPAWN = _Spawn()
_starting = threading.Lock()


@contextlib.contextmanager
def _no_main():
    """Hide where the main module came from, which multiprocessing sends to a new process."""
    main = vars(sys.modules["__main__"])
    with _starting:
        hidden = {name: main.pop(name) for name in ("__spec__", "__file__") if name in main}
        main["__spec__"] = None
        try:
            yield
        finally:
            main.update(hidden)


def make_processes(num_workers: int, start: Callable, *start_args):
    """Build an executor of worker processes that have little memory and end with this process.

    Each process begins with start(*start_args), and may have WORKER_BYTES of memory.

    Raises:
        ValueError: If a file is being imported for a function in it. The file's worker would import
            it, and so start workers again.
    """
    require_no_import("starts worker processes")
    return ProcessPoolExecutor(num_workers, SPAWN, _start_worker, (start, *start_args))


@contextlib.contextmanager
def watched(seconds: float):
    """End this process if the body takes longer than `seconds`, even while it is in C code."""
    with open(os.devnull, "w") as nowhere:
        # A Python signal handler waits until a long call in C returns; this timer ends the worker
        # anyway
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _start_worker(start, *start_args):
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A call that would fill the memory then fails, and only in this process
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    # The main process handles Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start(*start_args)


def _end_with_parent():
    # A parent that was killed has closed nothing, so the worker would wait for its next job for
    # ever
    multiprocessing.parent_process().join()
    os._exit(1)


def _watched(wall_limit_seconds, work, args):
    with watched(wall_limit_seconds):
        return work(*args)
