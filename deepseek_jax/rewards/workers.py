"""WorkerPool: worker processes for rewards, tools and environments."""

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

from deepseek_jax.rewards.worker import Job, LostJob, Worker


# Not pebble's pool: it gives the next call to a worker that was just killed, so `run` would have to
# repeat it
class WorkerPool:
    """Pool of processes that call a function.

    Jobs run by `run` go to any process. Jobs sent by `send` go to the process of their key, which
    may have state for this key. Use the pool as a context manager, or call close().

    Args:
        function: A module-level function. A process calls it for each job.
        start: A module-level function. A process calls it once, at its beginning.
        *start_args: The arguments of `start`.
        num_workers: Number of processes.
        wall_limit_seconds: A call that lasts longer ends its process, even while it is in C code;
            None if `function` itself limits what it calls.
    """

    def __init__(
        self,
        function: Callable,
        start: Callable,
        *start_args,
        num_workers: int,
        wall_limit_seconds: float | None,
    ):
        self.num_workers, self.wall_limit_seconds = num_workers, wall_limit_seconds
        self._workers = [
            Worker(function, start, start_args, wall_limit_seconds) for _ in range(num_workers)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """End the worker processes. The next job starts new ones."""
        for worker in self._workers:
            worker.close()

    def lost(self) -> str:
        """Return in words why a call has no result."""
        return f"it ended its process, or took more than {self.wall_limit_seconds:.0f} s"

    # Any: what `function` returns
    def call(self, *args) -> Any:
        """Call function(*args) and return its result.

        Raises:
            ValueError: With the message of what `function` raised, or with the reason why it has no
                result.
        """
        result = self.run({0: args}).get(0, ValueError(self.lost()))
        if isinstance(result, Exception):
            raise ValueError(str(result))
        return result

    def run(self, jobs: Mapping) -> dict:
        """Call function(*args) for every key -> args of `jobs`.

        Returns:
            key -> result, or the exception that the call raised. A call that killed its process
            twice has no key: the first time, the system may have killed the process.
        """
        waiting = deque(Job(key, args) for key, args in jobs.items())
        # Each worker gets a job and the next one, so that it need not wait for this process
        free, results, repeated = self._workers * 2, {}, set()
        running: dict[Job, Worker] = {}
        while waiting or running:
            while waiting and free:
                worker, job = free.pop(0), waiting.popleft()
                worker.send(job)
                running[job] = worker
            futures = [job.future for job in running if not job.done and job.future is not None]
            wait(futures, return_when=FIRST_COMPLETED)
            for job in [job for job in running if job.has_ended()]:
                worker = running.pop(job)
                free.append(worker)
                result = worker.wait(job)
                if not isinstance(result, LostJob):
                    results[job.key] = result
                elif job.key not in repeated:
                    repeated.add(job.key)
                    waiting.append(Job(job.key, job.args))
        return results

    def send(self, job: Job):
        """Begin a job in the process of its key. wait() returns its result."""
        self._worker(job.key).send(job)

    def wait(self, job: Job) -> Any:
        """Return the result of a job: what Worker.wait returns."""
        return self._worker(job.key).wait(job)

    def tell(self, key: Hashable, function: Callable, *args):
        """Begin function(*args) in the process of a key, without the user's code or a result."""
        self._worker(key).tell(function, *args)

    def stop(self, function: Callable):
        """Forget all jobs, and begin function() in every process. A running call is killed."""
        for worker in self._workers:
            worker.forget_jobs()
            worker.tell(function)

    def _worker(self, key):
        return self._workers[key % len(self._workers)]
