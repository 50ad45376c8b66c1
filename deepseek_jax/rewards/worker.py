"""One worker process, which runs jobs in order, for code that may hang, crash or fill the memory.

If a job ends the process, the other jobs run again in a new one or are lost. A process imports no
jax, and killing it loses nothing else.

Tests: tests/rewards/test_workers.py.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import itertools
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, NamedTuple

from deepseek_jax.named_code import require_no_import

WORKER_BYTES = 4 * 2**30
# A job runs this often if its worker ends each time for an unknown reason
TRIES = 3


class NotePlaces(NamedTuple):
    """Places of the array in which a worker notes what it does.

    The main process reads the array when the worker has ended before it could say so.

    Attributes:
        job: The number of the job.
        call: The place of the call in the job, see note_call.
        since: When this began, by time.monotonic().
        pid: The id of the process.
    """

    job: int = 0
    call: int = 1
    since: int = 2
    pid: int = 3


_AT = NotePlaces()
# The array with the places of NotePlaces; only a worker has it
_doing: ctypes.Array[ctypes.c_double]


class LostJob(NamedTuple):
    """Result of a job that was lost.

    Attributes:
        job: The Job that ended the worker; None if that is unknown, or if the worker was closed.
        call: The place of the call in that job, see note_call.
        seconds: How long this call ran.
        closed: True if the worker was closed.
    """

    job: "Job | None"
    call: int = 0
    seconds: float = 0.0
    closed: bool = False


@dataclasses.dataclass(eq=False)
class Job:
    """A call in a worker.

    Attributes:
        key: The caller's name for it. In a pool, jobs of one key run in one worker.
        args: The arguments of the worker's function.
        calls: Names of the user's functions that it calls, in order, for the caller's messages.
        needs: The life of the process that has the job's state. None: any life can run the job.
        life: The life of the process that runs it.
        number: Its number in the process.
        tries: How often its worker has ended for an unknown reason.
        future: The executor's Future while the job runs.
        done: True once it has a result.
        result: The result, see Worker.wait.
    """

    key: Any
    args: tuple
    calls: list[str] = dataclasses.field(default_factory=list)
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

    def has_ended(self) -> bool:
        """Return True if it has a result, or the process has ended it."""
        return self.done or (self.future is not None and self.future.done())


class Worker:
    """Process that runs jobs in order. It starts with the first job.

    Only one thread may call its methods.

    Args:
        function: A module-level function. The process calls it with the arguments of each job.
        start: A module-level function. The process calls it once, at its beginning.
        start_args: The arguments of `start`.
        seconds: A call of `function` that lasts longer ends the process, even while it is in C code;
            None for no limit.

    Attributes:
        life: How often the process has been started again. State exists in one life only.
    """

    def __init__(
        self, function: Callable, start: Callable, start_args: tuple, seconds: float | None
    ):
        self.life, self._numbers = 0, itertools.count(1)
        self._losses: dict[int, LostJob] = {}
        self._function, self._seconds, self._ended = function, seconds, 0.0
        self._executor: ProcessPoolExecutor | None = None
        self._waiting: dict[int, Job] = {}
        self._doing = SPAWN.RawArray("d", len(_AT))
        self._start = self._doing, start, *start_args

    def send(self, job: Job):
        """Begin a job. wait() returns its result."""
        if job.needs not in (None, self.life):
            job.finish(self._losses[job.needs])
            return
        job.number, job.life = next(self._numbers), self.life
        self._waiting[job.number] = job
        try:
            job.future = self._submit(job.number, self._seconds, self._function, *job.args)
            job.future.add_done_callback(self._note)
        except BrokenProcessPool:
            self._broke()

    def tell(self, function: Callable, *args):
        """Begin function(*args), which runs none of the user's code and has no result."""
        with contextlib.suppress(BrokenProcessPool):
            if self._executor is not None:
                self._submit(0, None, function, *args)

    def wait(self, job: Job) -> Any:
        """Wait for a job, and return its result.

        Returns:
            What the job returned, the exception that it raised, or LostJob.
        """
        while not job.done:
            self._finish(job)
        self._waiting.pop(job.number, None)
        return job.result

    def _finish(self, job: Job):
        """Wait until a job ends, or its process does."""
        # send() has set it, or has finished the job
        assert job.future is not None
        error = job.future.exception()
        if isinstance(error, BrokenProcessPool):
            self._broke()
        else:
            job.finish(job.future.result() if error is None else error)

    def is_busy(self) -> bool:
        """Return True while a job runs."""
        return any(not job.has_ended() for job in self._waiting.values())

    def close(self):
        """End the process. A call that is running is killed. The next job starts a new process."""
        busy = self.is_busy()
        self._waiting.clear()
        if self._executor is None:
            return
        for child in multiprocessing.active_children() if busy else ():
            if child.pid == int(self._doing[_AT.pid]):
                child.kill()
        self._executor.shutdown(cancel_futures=True)
        self._executor = None
        self._next_life(LostJob(None, closed=True))

    def forget_jobs(self):
        """Forget all jobs. A call that is running is killed."""
        if self.is_busy():
            self.close()
        self._waiting.clear()

    def _submit(self, *job):
        if self._executor is None:
            self._doing[_AT.pid] = 0
            require_no_import("starts worker processes")
            self._executor = ProcessPoolExecutor(1, SPAWN, _start_worker, self._start)
        return self._executor.submit(_run, *job)

    def _note(self, future):
        self._ended = time.monotonic()

    def _next_life(self, lost):
        self._losses[self.life] = lost
        self.life += 1

    def _broke(self):
        """Find the job that ended the process, and run other jobs again where possible.

        A job can run again if it needs no state of the ended process, for up to TRIES times.
        """
        jobs = list(self._waiting.values())
        wait([job.future for job in jobs if job.future is not None])
        # A job broke, so there is the executor that ran it
        assert self._executor is not None
        # After this the executor's thread has called _note for each of them
        self._executor.shutdown()
        self._executor = None
        lost_jobs = []
        for job in jobs:
            error = None if job.future is None else job.future.exception()
            if job.future is None or isinstance(error, BrokenProcessPool):
                lost_jobs.append(job)
            else:
                job.finish(job.future.result() if error is None else error)
        number = int(self._doing[_AT.job])
        culprit = next((job for job in lost_jobs if job.number == number), None)
        seconds = self._ended - self._doing[_AT.since]
        lost = LostJob(culprit, int(self._doing[_AT.call]), seconds)
        self._next_life(lost)
        self._waiting = {}
        for job in lost_jobs:
            job.tries += culprit is None
            if job is culprit or job.needs is not None or job.tries == TRIES:
                job.finish(lost)
            else:
                job.future = None
                self.send(job)


class _Process(SpawnProcess):
    """A fresh process that does not import the main module: a script would run once more there."""

    @staticmethod
    def _Popen(process):
        with _starting, _no_main(), _same_hashes():
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
    hidden: dict[str, object] = {
        name: main.pop(name) for name in ("__spec__", "__file__") if name in main
    }
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)


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


def _start_worker(doing, start, *start_args):
    global _doing
    _doing = doing
    doing[_AT.pid] = os.getpid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A call that would fill the memory then fails, and only in this process
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    # The main process handles Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start(*start_args)


def _end_with_parent():
    # A parent that was killed has closed nothing, so the worker would wait for its next job for
    # ever
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(number, seconds, function, *args):
    """Run the job of this number, in the worker."""
    _doing[_AT.job] = number
    note_call(0)
    with contextlib.nullcontext() if seconds is None else watched(seconds):
        return function(*args)


def note_call(place: int):
    """Note, in a worker, that the call at this place of its job begins."""
    _doing[_AT.call], _doing[_AT.since] = place, time.monotonic()


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
