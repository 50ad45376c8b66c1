"""Worker processes for rewards that may hang, or crash, or fill the memory.

The processes import no jax and can be lost without loss.
"""

import faulthandler
import multiprocessing
import os
import resource
import signal
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

WORKER_BYTES = 4 * 2**30


class WorkerPool:
    """Calls a function in `num_workers` processes, each call under a wall limit.

    work, start: functions of a module, which every process calls for a job and once at its start.
    A call that lasts longer than wall_limit_seconds ends its process, even where it waits in C.
    Use it as a context manager, or call close(). The processes start by "spawn", which imports the
    main script again: keep that behind `if __name__ == "__main__"`.
    """

    def __init__(self, work, start, *start_args, num_workers, wall_limit_seconds):
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

    def run(self, jobs):
        """Call work(*args) for every key -> args of `jobs`.

        Returns a dict of key -> result, or the exception that the call raised; without the keys
        of the calls that took their process with them.
        """
        results = self._run(jobs)
        for key in [key for key in jobs if key not in results]:
            results |= self._run({key: jobs[key]})  # lost with another's worker: now it is alone
        return results

    def _run(self, jobs):
        """Results of `jobs`, without those that were under way or waiting when a worker died."""
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.num_workers, spawn, _start_worker, self._start)
        futures = {}
        try:
            for key, args in jobs.items():
                futures[key] = self._pool.submit(
                    _watched, self.wall_limit_seconds, self._work, args
                )
        except BrokenProcessPool:
            pass  # not lost: those that got in fail alike, the rest have no result, and run() has all again
        wait(futures.values())
        results = {key: future.exception() or future.result() for key, future in futures.items()}
        results = {k: r for k, r in results.items() if not isinstance(r, BrokenProcessPool)}
        if len(results) < len(jobs):
            self.close()
        return results


def _start_worker(start, *start_args):
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    start(*start_args)


def _watched(wall_limit_seconds, work, args):
    with open(os.devnull, "w") as nowhere:
        # A signal would wait for the end of one long step in C; this ends the worker instead.
        faulthandler.dump_traceback_later(wall_limit_seconds, exit=True, file=nowhere)
        try:
            return work(*args)
        finally:
            faulthandler.cancel_dump_traceback_later()
