"""How the processes of a run print once, wait and agree; with a single process every call is free."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def first_process():
    """Whether this is process 0, which alone prints and writes the files that all share."""
    return jax.process_index() == 0


def say(message: str):
    """Print a line, from process 0 only."""
    if first_process():
        print(message, flush=True)


def barrier(name: str):
    """Wait until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_first(tree):
    """Process 0's numpy arrays, on every process. The others pass arrays of the same shapes."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def total(number):
    """The sum over processes of a number, as float32[]."""
    if jax.process_count() == 1:
        return np.float32(number)
    return np.float32(multihost_utils.process_allgather(np.float64(number)).sum())


def any_on(mesh: Mesh, flag: bool):
    """Whether the flag is set on any process that has a device of the mesh; all of these have to call it."""
    if jax.process_count() == 1:
        return flag
    places = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    # One entry for each device: a process writes its flag into those of its own devices
    flags = jax.make_array_from_callback((mesh.size,), places, lambda _: np.array([flag]))
    return bool(jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))(flags))


def from_each(value):
    """The values of all processes, a list by process index. value: anything that JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # allgather needs one shape: texts are padded to the longest
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.pad(text, (0, int(sizes.max()) - len(text)))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.ravel(), strict=True)]


def in_shares(work, count: int):
    """Share work between the processes: -> on every process a list of `count` results, in order.

    work(rows) -> the results of these rows of range(count), a list of what JSON can hold; each process calls
    it for its own rows. If it raises on one process, all raise: the others a RuntimeError with the message.
    """
    processes, done, failure = jax.process_count(), None, None
    # Neighbours go to different processes: completions of one prompt tend to be slow together
    own = range(jax.process_index(), count, processes)
    try:
        done = work(own)
    # Of any kind: the other processes wait for the outcome in from_each
    except Exception as error:
        failure = error
    message = None if failure is None else f"{type(failure).__name__}: {failure}"
    shares = from_each({"done": done, "failure": message})
    if failure is not None:
        raise failure
    for process, share in enumerate(shares):
        if share["failure"] is not None:
            raise RuntimeError(f"process {process} failed: {share['failure']}")
    return [shares[row % processes]["done"][row // processes] for row in range(count)]
