"""One worker process, which runs jobs in order.

If a job ends the process, the other jobs run again in a new one or are lost.
"""

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

# A job runs this often if its worker ends each time for an unknown reason
TRIES = 3
_AT = worker.Doing()


class Lost(NamedTuple):
    """Result of a job that was lost: why its worker ended.

    Attributes:
        key: The conversation with the call that ended the worker, or None if no call did.
        why: The reason, in words.
        seconds: How long this call ran.
    """

    key: int | None
    why: str
    seconds: float = 0.0


@dataclasses.dataclass(eq=False)
class Job:
    """A call of a function of worker.py, for the conversation `key`.

    Attributes:
        key: The conversation.
        calls: Names of the user's functions in the job, in order.
        work: The function of worker.py.
        args: Its arguments.
        needs: The life of the process that has the job's environment. None: any life can run the
            job.
        life: The life of the process that runs it.
        number: Its number in the process.
        tries: How often its worker has ended for an unknown reason.
        future: The executor's Future while the job runs.
        done: True once it has a result.
        result: The result, see Process.wait.
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
    """Process that runs jobs in order. It starts with the first job.

    Only one thread may call its methods.

    Attributes:
        life: How often the process has been started again. An environment exists in one life only.
    """

    def __init__(self, code: Code, call_seconds: float, call_bytes: int):
        self.life, self._losses, self._numbers = 0, {}, itertools.count(1)
        self._call_seconds, self._ended = call_seconds, 0.0
        self._executor, self._waiting = None, {}
        self._doing = SPAWN.RawArray("d", len(_AT))
        self._start = worker.start, self._doing, code, call_seconds, call_bytes

    def send(self, job: Job):
        """Begin a job. wait() returns its result."""
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
        """Begin work(*args), which runs none of the user's code and has no result."""
        with contextlib.suppress(BrokenProcessPool):
            if self._executor is not None:
                self._submit(0, work, *args)

    def wait(self, job: Job) -> Any:
        """Wait for a job, and return its result.

        Returns:
            What the job returned, a ValueError, or Lost.
        """
        while not job.done:
            try:
                job.finish(job.future.result())
            except BrokenProcessPool:
                self._broke()
        self._waiting.pop(job.number, None)
        return job.result

    def stop(self):
        """Forget all jobs and environments. A call that is running is killed."""
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
        """Find the job that ended the process, and run other jobs again where possible.

        A job can run again if it needs no environment of the ended process, for up to TRIES times.
        """
        jobs = list(self._waiting.values())
        wait([job.future for job in jobs if job.future is not None])
        # After this the executor's thread has called _note for each of them
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
    """Make processes that start in the body hash texts alike in every run.

    The order of a set is then the same in a repeated run.
    """
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before
