"""Processes that are threads of this one, for what a real run needs several machines for."""

import itertools
import threading
from collections import Counter, defaultdict
from types import SimpleNamespace

import jax
import numpy as np
from jax.experimental import multihost_utils

from deepseek_jax.parallel import processes

# Longer than any of them waits for another
SECONDS = 20


class Member(threading.Thread):
    """A thread of the process of the thread that makes it."""

    def __init__(self, *args, process=None, **options):
        super().__init__(*args, **options)
        self.process = own() if process is None else process


def own():
    return getattr(threading.current_thread(), "process", 0)


class Numbers:
    """itertools.count(start) of each process."""

    def __init__(self, start):
        self.of = defaultdict(lambda: itertools.count(start))

    def __next__(self):
        return next(self.of[own()])


class Times(Counter):
    """A Counter of each process."""

    def __getitem__(self, name):
        return super().__getitem__((own(), name))

    def __setitem__(self, name, value):
        super().__setitem__((own(), name), value)


class Store:
    """The key-value store of JAX's coordination service. waits: {what: milliseconds} that were allowed.

    absent: whether a barrier's time is over at once.
    """

    def __init__(self, count):
        self.values, self.waits, self.absent = {}, {}, False
        self.count, self.barriers, self.changed = count, {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            assert allow_overwrite or key not in self.values, key
            self.values[key] = value
            self.changed.notify_all()

    def key_value_dir_get(self, place):
        return [(key, value) for key, value in self.values.items() if key.startswith(f"{place}/")]

    def blocking_key_value_get(self, key, timeout_in_ms):
        self.waits[key] = timeout_in_ms
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, SECONDS), key
            return self.values[key]

    def wait_at_barrier(self, name, timeout_in_ms):
        self.waits[name] = timeout_in_ms
        if self.absent:
            raise jax.errors.JaxRuntimeError(name)
        with self.changed:
            barrier = self.barriers.setdefault(name, threading.Barrier(self.count))
        barrier.wait(SECONDS)


class Group:
    """Threads that stand for `count` processes: their store, and the arrays that they gathered."""

    def __init__(self, monkeypatch, count=2):
        self.count, self.store, self.gathered = count, Store(count), []
        self.place, self.meeting = [None] * count, threading.Barrier(count)
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", own)
        monkeypatch.setattr(processes, "_store", lambda: self.store)
        monkeypatch.setattr(processes, "_agreements", Numbers(0))
        monkeypatch.setattr(processes, "_exchanges", Numbers(1))
        monkeypatch.setattr(processes, "_barriers", Times())
        monkeypatch.setattr(processes, "POLL_SECONDS", 0.001)
        names = vars(threading) | {"Thread": Member}
        monkeypatch.setattr(processes, "threading", SimpleNamespace(**names))
        monkeypatch.setattr(multihost_utils, "process_allgather", self._gather)
        first = lambda tree: self._meet(tree)[0]  # noqa: E731
        monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", first)

    def _meet(self, value):
        self.place[own()] = value
        self.meeting.wait(SECONDS)
        values = list(self.place)
        self.meeting.wait(SECONDS)
        return values

    def _gather(self, array):
        self.gathered.append(np.shape(array))
        return np.stack(self._meet(np.asarray(array)))

    def each(self, work):
        """[work(process) or the exception that it raised] of all processes, at once."""
        found = [None] * self.count

        def run(process):
            try:
                found[process] = work(process)
            except Exception as error:
                found[process] = error

        members = [Member(target=run, args=(n,), process=n) for n in range(self.count)]
        for member in members:
            member.start()
        for member in members:
            member.join(SECONDS)
            assert not member.is_alive()
        return found
