"""Let the processes of a run print once, wait for each other and agree.

With a single process every call is free. Messages that must not wait for the devices go through the
key-value store of JAX's coordination service.

Tests: tests/parallel/test_meeting.py.
"""

import contextlib
import itertools
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax._src import distributed  # JAX has no public name for the store
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.errors import shortened
from deepseek_jax.progress import line
from deepseek_jax.trees import PyTree

Result = TypeVar("Result")
# Seconds that a process waits at a barrier for other processes
BARRIER_SECONDS = 1800
# Seconds after which a process looks again for another process's request to stop
POLL_SECONDS = 0.5
_barriers: Counter[str] = Counter()
_agreements, _exchanges = itertools.count(), itertools.count(1)


def first_process() -> bool:
    """Return True on process 0: only it prints, and writes the files that all processes share."""
    return jax.process_index() == 0


def say(message: str):
    """Print a line, from process 0 only."""
    if first_process():
        line(shortened(message))


def is_due(count: int, first: int = 1) -> bool:
    """Return True if the count-th occurrence of an event should be reported with `say`.

    That is the case at `first`, a power of 2, and each time that the count doubles.
    """
    return count >= first and count & (count - 1) == 0


def barrier(name: str, seconds: float = BARRIER_SECONDS):
    """Wait until every process has come to the barrier of this name.

    Raises:
        RuntimeError: Naming the missing processes, if that takes longer than `seconds`.
    """
    if jax.process_count() == 1:
        return
    # A name may be used again, but the service takes each name only once
    _barriers[name] += 1
    key_prefix = f"barrier/{name}/{_barriers[name]}"
    _store().key_value_set(f"{key_prefix}/{jax.process_index()}", "")
    try:
        _store().wait_at_barrier(key_prefix, timeout_in_ms=round(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        present_processes = {
            int(key.rpartition("/")[2]) for key, _ in _store().key_value_dir_get(key_prefix)
        }
        missing = [
            process for process in range(jax.process_count()) if process not in present_processes
        ]
        raise RuntimeError(
            f"barrier {name!r}: process {jax.process_index()} waited {seconds:.0f} s, and these processes of "
            f"{jax.process_count()} have not come: {missing or 'none, but one came too late'}; look at "
            "their output"
        ) from error


def say_mistake(message: str, seconds: float = 10.0) -> bool:
    """Return True if this process should print a mistake.

    Process 0 prints it, and so does a process with another message. Waits up to `seconds` for the
    other processes, which as a rule make the same mistake.
    """
    if jax.process_count() == 1:
        return True
    _store().key_value_set(f"mistake/{jax.process_index()}", message)
    try:
        # Process 0, which serves the store, must not end before the others have read it
        _store().wait_at_barrier("mistake", timeout_in_ms=round(1000 * seconds))
    # The other processes may make no mistake, and never come
    except jax.errors.JaxRuntimeError:
        pass
    messages = dict(_store().key_value_dir_get("mistake"))
    return first_process() or messages.get("mistake/0") != message


class StopTogether:
    """A should_stop() for steps that all processes take: all stop at the same call.

    After should_stop is True on any process, this returns True on all of them at the same call. A
    call does not wait for the devices. Before the first process has to stop, a call does not wait
    for another process either. Every process makes the same calls. Use it as a context manager.
    """

    def __init__(self, should_stop: Callable[[], bool]):
        self.should_stop, self.alone = should_stop, jax.process_count() == 1
        # The number of calls that returned False; the call at which all return True, once that is known
        self.calls = 0
        self.stop_call: int | None = None
        self.lock, self.closed = threading.Lock(), threading.Event()
        # Every process makes the same objects in the same order
        self.place = f"stop/{next(_agreements)}"

    def __enter__(self):
        if not self.alone:
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closed.set()
        with self.lock:
            # Another process may be asked to stop in its last calls, and needs this one's number of calls
            if not self.alone and self.stop_call is None:
                self._tell_calls()

    def __call__(self):
        """Return True if the steps should stop, the same on all processes."""
        wants_stop = self.should_stop()
        if self.alone:
            return wants_stop
        with self.lock:
            if wants_stop and self.stop_call is None:
                _store().key_value_set(f"{self.place}/asked/{jax.process_index()}", "")
                self._agree()
            stops_now = self.stop_call is not None and self.calls + 1 >= self.stop_call
            self.calls += not stops_now
            return stops_now

    def _listen(self):
        """Answer another process's request while this one is inside a step."""
        while not self.closed.wait(POLL_SECONDS):
            if _store().key_value_dir_get(f"{self.place}/asked"):
                with self.lock:
                    if self.stop_call is None:
                        self._agree()
                return

    def _agree(self):
        """Set the call at which all processes stop: the first one that no process has passed.

        Every process holds its lock meanwhile, so that no call returns.
        """
        self._tell_calls()
        wait_ms = round(1000 * BARRIER_SECONDS)
        calls = [
            _store().blocking_key_value_get(f"{self.place}/calls/{process}", wait_ms)
            for process in range(jax.process_count())
        ]
        self.stop_call = max(map(int, calls)) + 1

    def _tell_calls(self):
        _store().key_value_set(f"{self.place}/calls/{jax.process_index()}", str(self.calls))


def _store():
    return distributed.global_state.client


def from_first(tree: PyTree) -> PyTree:
    """Return process 0's numpy arrays on every process.

    Args:
        tree: The arrays. Other processes than 0 pass arrays of the same shapes.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def total(number: float) -> np.float32:
    """Return the sum of a number over processes, as float32[]."""
    if jax.process_count() == 1:
        return np.float32(number)
    return np.float32(multihost_utils.process_allgather(np.float64(number)).sum())


def total_on(mesh: Mesh, numbers: np.ndarray) -> jax.Array:
    """Sum numbers over processes, on every device of the mesh.

    Devices compute the sums, so that on accelerators no process waits for another. Every process
    calls this.

    Args:
        mesh: The mesh.
        numbers: float32[k].

    Returns:
        float32[k].
    """
    row_sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    owners = [device.process_index for device in mesh.devices.flat]
    # Each process writes its numbers into the row of its first device, and zeros into its other rows
    first_row = owners.index(jax.process_index())

    def row_of_device(index):
        return numbers[None] if index[0].start == first_row else np.zeros_like(numbers)[None]

    rows = jax.make_array_from_callback((mesh.size, len(numbers)), row_sharding, row_of_device)
    totals = jax.jit(_sum_rows, out_shardings=NamedSharding(mesh, PartitionSpec()))(rows)
    # On CPUs, the sums of two programs that run at once may wait for each other
    return jax.block_until_ready(totals) if jax.default_backend() == "cpu" else totals


def _sum_rows(rows):
    return rows.sum(0)


def any_on(mesh: Mesh, flag: bool) -> bool:
    """Return True if the flag is set on any process that has a device of the mesh.

    All of these processes have to call this.
    """
    if jax.process_count() == 1:
        return flag
    flag_sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    # One entry for each device: a process writes its flag into the entries of its own devices
    flags = jax.make_array_from_callback((mesh.size,), flag_sharding, lambda _: np.array([flag]))
    return bool(jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))(flags))


@contextlib.contextmanager
def _naming_who_is_missing(seconds: float):
    """Print which processes have not come, if a block takes longer than `seconds`.

    All processes meet in the block. This one waits on after the message: a missing process may be
    at honest work, such as building a dataset.
    """
    exchange_number = next(_exchanges)
    # One key for each process is enough: every process comes to these blocks in the same order
    _store().key_value_set(
        f"exchange/{jax.process_index()}", str(exchange_number), allow_overwrite=True
    )

    def print_missing():
        number_by_process = {
            int(key.rpartition("/")[2]): int(number)
            for key, number in _store().key_value_dir_get("exchange")
        }
        missing = [
            process
            for process in range(jax.process_count())
            if number_by_process.get(process, 0) < exchange_number
        ]
        print(
            f"process {jax.process_index()} has waited {seconds:.0f} s, and these processes of "
            f"{jax.process_count()} have not come: {missing}; look at their output",
            file=sys.stderr,
            flush=True,
        )

    timer = threading.Timer(seconds, print_missing)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def from_each(value: Any, seconds: float = BARRIER_SECONDS) -> list:
    """Return the values of all processes, a list by process index.

    A process that waits for others longer than `seconds` prints which of them are missing, and
    waits on.

    Args:
        value: Anything that JSON can represent.
        seconds: When to print the message.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # allgather needs one shape: texts are padded to the longest
    with _naming_who_is_missing(seconds):
        byte_counts = multihost_utils.process_allgather(np.int32(len(text)))
    # A power of 2: each length compiles a program, and conversations call this at every pause
    padded_length = 1 << (int(byte_counts.max()) - 1).bit_length()
    padded_text = np.pad(text, (0, padded_length - len(text)))
    rows = np.asarray(multihost_utils.process_allgather(padded_text))
    return [
        json.loads(row[:byte_count].tobytes())
        for row, byte_count in zip(rows, byte_counts.ravel(), strict=True)
    ]


def in_shares(
    compute: Callable[[list[int]], list], count: int, owners: npt.ArrayLike | None = None
) -> list:
    """Share work between the processes, and give every process all results.

    Args:
        compute: A function that takes some rows of range(count) and returns their results,
            which JSON can represent. Each process calls it for its own rows.
        count: The number of rows.
        owners: int[count], the process that works on each row, the same on all processes. By
            default neighbours go to different processes: completions of one prompt tend to be slow
            together.

    Returns:
        A list of `count` results, in order.

    Raises:
        RuntimeError: With the message of another process that failed. A process that fails itself
            raises its own exception.
    """
    own_results, failure = None, None
    owners = np.arange(count) % jax.process_count() if owners is None else np.asarray(owners)
    try:
        own_results = compute(np.flatnonzero(owners == jax.process_index()).tolist())
    # Any exception: the other processes wait for the outcome in from_each
    except Exception as error:
        failure = error
    message = None if failure is None else f"{type(failure).__name__}: {failure}"
    shares = from_each({"done": own_results, "failure": message})
    if failure is not None:
        raise failure
    for process, share in enumerate(shares):
        if share["failure"] is not None:
            raise RuntimeError(f"process {process} failed: {share['failure']}")
    results = [iter(share["done"]) for share in shares]
    return [next(results[owner]) for owner in owners]


def from_owners(owners: np.ndarray | None, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Gather the entries that each process has of some arrays, and return the whole arrays.

    Args:
        owners: int[b], the process that has each entry; None if every process has all.
        arrays: int32[b] or float32[b], the same number on every process.
    """
    if owners is None:
        return arrays
    bits = np.stack([array.view(np.int32) for array in arrays])
    bits_by_process = np.asarray(multihost_utils.process_allgather(bits))
    owner_bits = bits_by_process[owners, :, np.arange(len(owners))].T
    return tuple(
        entries.copy().view(array.dtype) for entries, array in zip(owner_bits, arrays, strict=True)
    )


def results_of_each(call: Callable[[], Any]) -> list:
    """Call a function on each process, and return all results, a list by process index.

    Args:
        call: Returns what JSON can represent.

    Raises:
        ValueError: On all processes, if call() raises one on any of them.
    """
    result = failure = None
    try:
        result = call()
    # The other processes wait for the outcome
    except ValueError as error:
        failure = error
    outcomes = from_each([result, None if failure is None else str(failure)])
    if failure is not None:
        raise failure
    for process, (_, message) in enumerate(outcomes):
        if message is not None:
            raise ValueError(f"process {process}: {message}")
    return [result for result, _ in outcomes]


def agreed(call: Callable[[], tuple[Result, Any]], what: str) -> Result:
    """Return a result of call(), after a check that all processes found the same.

    Args:
        call: Returns (the result, something that JSON can represent). The second must be the same
            on all processes.
        what: The name of the second, for messages.

    Raises:
        ValueError: On all processes, if the second differs, or if call() raises one on any of them.
    """
    results: list[Result] = []

    def record():
        result, shared = call()
        results.append(result)
        return shared

    shared_values = results_of_each(record)
    for process, value in enumerate(shared_values):
        if value != shared_values[0]:
            raise ValueError(
                f"{what} differs between processes: {shared_values[0]} on process 0, {value} on process "
                f"{process}; give all of them the same files"
            )
    return results[0]
