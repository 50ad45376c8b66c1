"""Worker processes for rewards that may hang, crash or fill the memory.

The processes import no jax, and killing one loses nothing else.
"""

import faulthandler
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

WORKER_BYTES = 4 * 2**30


class WorkerPool:
    """Calls a function in `num_workers` processes, each call under a wall-clock limit.

    work, start: module-level functions; a process calls work for each job, and start once at its beginning.
    A call that lasts longer than wall_limit_seconds ends its process, even while it is in C code.
    Use it as a context manager, or call close(). The processes start by "spawn", which imports the
    main script again: guard that with `if __name__ == "__main__"`.
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

    def close(self):
        """End the worker processes. The next run() starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

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
        """Results of `jobs`, without those that were running or waiting when a worker died."""
        if self._pool is None:
            # Not fork, which is unsafe in a process where jax has started threads
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.num_workers, spawn, _start_worker, self._start)
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
        results = {k: r for k, r in results.items() if not isinstance(r, BrokenProcessPool)}
        # A pool that lost a worker accepts no more jobs: the next run starts another one
        if len(results) < len(jobs):
            self.close()
        return results


def _start_worker(start, *start_args):
    # A call that would fill the memory then fails in this process alone
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    # The main process handles Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start(*start_args)


def _watched(wall_limit_seconds, work, args):
    with open(os.devnull, "w") as nowhere:
        # A Python signal handler waits until a long call in C returns; this timer ends the worker anyway
        faulthandler.dump_traceback_later(wall_limit_seconds, exit=True, file=nowhere)
        try:
            return work(*args)
        finally:
            faulthandler.cancel_dump_traceback_later()
