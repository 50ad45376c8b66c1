"""What the processes of one run agree on; with a single one, every call is free."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec


def first_process():
    """Whether this is process 0: the one that prints, and that writes what all share."""
    return jax.process_index() == 0


def say(message):
    """Print a line, once for all processes."""
    if first_process():
        print(message, flush=True)


def barrier(name):
    """Wait until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_first(tree):
    """Process 0's numpy arrays, on every process; the others give arrays of the same shapes."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def total(number):
    """The sum over processes of a number, as float32[]."""
    if jax.process_count() == 1:
        return np.float32(number)
    return np.float32(multihost_utils.process_allgather(np.float64(number)).sum())


def any_on(mesh, flag):
    """Whether the flag is set on any process that has a device of the mesh; each of them has to ask."""
    if jax.process_count() == 1:
        return flag
    places = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    flags = jax.make_array_from_callback((mesh.size,), places, lambda _: np.array([flag]))
    return bool(jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))(flags))


def from_each(value):
    """What each process gave, a list by process index, of values that JSON can say."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.pad(text, (0, int(sizes.max()) - len(text)))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.ravel(), strict=True)]
