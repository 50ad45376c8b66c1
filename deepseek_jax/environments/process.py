"""One worker process, which runs jobs in order. Where one ends it, the others run again or are lost."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from deepseek_jax.environments import worker
from deepseek_jax.environments.code import Code
from deepseek_jax.rewards.workers import SPAWN, make_processes

# Times that a job is run while its worker ends for a reason that is not known
TRIES = 3
_AT = worker.Doing()


class Lost(NamedTuple):
    """In place of a result: why the worker ended. key: the conversation whose call ended it; None: none did.
    seconds: that this call ran.
    """

    key: int | None
    why: str
    seconds: float = 0.0


@dataclasses.dataclass(eq=False)
class Job:
    """A call of one of the functions of worker.py, for the conversation `key`.

    calls: the names of the user's functions in it, in order. needs: the life of the process that holds its
    environment; None: any can run it. life: that in which it runs.
    """

    key: int
    calls: list[str]
    work: Callable
    args: tuple
    needs: int | None = None
    life: int = 0
    number: int = 0
    tries: int = 0
    future: Future | None = None
    done: bool = False
    result: Any = None

    def finish(self, result: Any):
        """Set the result, unless there is one."""
        if not self.done:
            self.done, self.result = True, result


class Process:
    """Runs jobs in order in one process, which starts with the first of them.

    life: how often it has been started anew; an environment lives in one life. Calls are made by one thread.
    """

    def __init__(self, code: Code, call_seconds: float, call_bytes: int):
        self.life, self._losses, self._numbers = 0, {}, itertools.count(1)
        self._call_seconds, self._ended = call_seconds, 0.0
        self._executor, self._waiting = None, {}
        self._doing = SPAWN.RawArray("d", len(_AT))
        self._start = worker.start, self._doing, code, call_seconds, call_bytes

    def send(self, job: Job):
        """Begin a job; wait() gives its result."""
        if job.needs not in (None, self.life):
            job.finish(self._losses[job.needs])
            return
        job.number, job.life = next(self._numbers), self.life
        self._waiting[job.number] = job
        try:
            job.future = self._submit(job.number, job.work, *job.args)
            job.future.add_done_callback(self._note)
        except BrokenProcessPool:
            self._broke()

    def tell(self, work: Callable, *args):
        """Begin work(*args), which runs none of the user's code, and has no result."""
        with contextlib.suppress(BrokenProcessPool):
            if self._executor is not None:
                self._submit(0, work, *args)

    def wait(self, job: Job) -> Any:
        """The result of a job: what it returned, a ValueError, or Lost."""
        while not job.done:
            try:
                job.finish(job.future.result())
            except BrokenProcessPool:
                self._broke()
        self._waiting.pop(job.number, None)
        return job.result

    def stop(self):
        """Forget all jobs and environments; a call that runs is killed."""
        if self._busy():
            self.close()
        self._waiting.clear()
        self.tell(worker.forget)

    def close(self):
        """End the process."""
        busy = self._busy()
        self._waiting.clear()
        if self._executor is None:
            return
        for child in multiprocessing.active_children() if busy else ():
            if child.pid == int(self._doing[_AT.pid]):
                child.kill()
        self._executor.shutdown(cancel_futures=True)
        self._executor = None
        self._next_life(Lost(None, "the conversations were stopped"))

    def _busy(self):
        return any(not job.done and not job.future.done() for job in self._waiting.values())

    def _submit(self, *job):
        if self._executor is not None:
            return self._executor.submit(worker.run, *job)
        self._doing[_AT.pid] = 0
        self._executor = make_processes(1, *self._start)
        # The first job starts the process
        with _same_hashes():
            return self._executor.submit(worker.run, *job)

    def _note(self, future):
        self._ended = time.monotonic()

    def _next_life(self, lost):
        self._losses[self.life] = lost
        self.life += 1

    def _broke(self):
        """Find whose call ended the process, and begin anew the jobs that another process can run."""
        jobs = list(self._waiting.values())
        wait([job.future for job in jobs if job.future is not None])
        # Its thread has then called _note for each of them
        self._executor.shutdown()
        self._executor = None
        over = []
        for job in jobs:
            if job.future is None or job.future.exception() is not None:
                over.append(job)
            else:
                job.finish(job.future.result())
        number = int(self._doing[_AT.job])
        culprit = next((job for job in over if job.number == number), None)
        lost = self._lost(culprit)
        self._next_life(lost)
        self._waiting = {}
        for job in over:
            job.tries += culprit is None
            if job is culprit or job.needs is not None or job.tries == TRIES:
                job.finish(lost)
            else:
                job.future = None
                self.send(job)

    def _lost(self, culprit):
        if culprit is None:
            return Lost(
                None, "its worker process ended, perhaps because the machine had no memory left"
            )
        call, seconds = int(self._doing[_AT.call]), self._ended - self._doing[_AT.since]
        if call == worker.IMPORT:
            limit = f"{worker.IMPORT_SECONDS:.0f} s"
            why = f"the import of its file ended its process, or took more than {limit}"
            return Lost(culprit.key, why, seconds)
        name = culprit.calls[call]
        if seconds < self._call_seconds:
            return Lost(culprit.key, f"{name} ended its process", seconds)
        limit = f"call_seconds={self._call_seconds:g}"
        return Lost(culprit.key, f"{name} took more than {limit}", seconds)


@contextlib.contextmanager
def _same_hashes():
    """Processes that start meanwhile hash texts alike: the order of a set is the same in a repeated run."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before
