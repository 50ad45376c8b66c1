"""Checks for launch/train.py --check: can these processes run this experiment together?

They take about a minute. Every process tests its devices, its versions, a collective on each axis
of the mesh, the place of the mesh, the work directory and the data. launch/doctor.py has more
checks of the same form, which need no experiment. JAX is imported inside functions, as in
launch/common.py.
"""

import contextlib
import functools
import importlib.metadata
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.experiment import OpenedRecipe
from deepseek_jax.recipes.workdir import check_workdir

# All processes must have the same versions of these
PACKAGES = ("deepseek_jax", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain")
# With several processes, a check that takes longer hangs: a process is missing, or a link is down
HANGS_SECONDS = 120.0
# Bytes on each device, for an all-reduce that shows a slow link
MESSAGE_BYTES = 2**24
HANGS = 1


class Check(NamedTuple):
    """One check: a name, and a function that looks.

    Attributes:
        look: look() returns what it found, in words. It raises an error, with the remedy, if
            something is wrong.
    """

    name: str
    look: Callable[[], str]


def look_at(checks: Iterable[Check]):
    """Do each check in turn. If there are several processes, a check that hangs ends this one.

    Yields:
        (the check's name, what it found, seconds).
    """
    import jax

    for name, look in checks:
        began = time.monotonic()
        # A single process waits for no other, so it does not hang, however long its data take
        watchdog = contextlib.nullcontext() if jax.process_count() == 1 else _watched(name)
        with watchdog, waiting_for(f"checking the {name}"):
            finding = look()
        yield name, finding, time.monotonic() - began


def of_processes(mesh):
    """Return the checks of what the processes of a mesh have and share."""
    return [
        Check("devices", lambda: _devices(mesh)),
        Check("versions", _versions),
        Check("place of the mesh", lambda: _placement(mesh)),
        Check("collectives", lambda: _collectives(mesh)),
    ]


def check(opened: OpenedRecipe, config: ConfigDict, workdir: Path, redo: bool = False):
    """Do all checks of an experiment, and print from process 0 what each one found.

    Raises:
        ValueError: Something is wrong that a user can correct.
        RuntimeError: A device, or its link, computes a wrong sum.
    """
    from deepseek_jax.parallel.processes import say
    from deepseek_jax.recipes import driver
    from deepseek_jax.training.metrics import MetricsWriter
    from deepseek_jax.training.run import Run

    recipe, settings, mesh, _ = opened

    def describe_data(folder, claim):
        # It writes nothing: no stage runs
        run = Run(mesh, folder, MetricsWriter(folder))
        return driver.describe(recipe, settings, run, claim, workdir, redo)

    files_check = Check(
        "work directory and data", lambda: _files(opened, config, workdir, describe_data)
    )
    checks, began = [*of_processes(mesh), files_check], time.monotonic()
    for name, finding, _ in look_at(checks):
        say(f"{name}: {finding}")
    seconds = time.monotonic() - began
    say(
        f"{len(checks)} of {len(checks)} checks hold, after {seconds:.0f} s; leave out --check to run"
    )


class _watched:
    """A context that ends the process if the block hangs.

    A collective that waits for a missing process cannot be interrupted in another way.
    """

    def __init__(self, name: str):
        self.timer = threading.Timer(HANGS_SECONDS, self._hangs)
        self.name, self.timer.daemon = name, True

    def __enter__(self):
        self.timer.start()

    def __exit__(self, *_):
        self.timer.cancel()

    def _hangs(self):
        print(
            f"error: --check: {self.name} takes more than {HANGS_SECONDS:.0f} s on {_here()}; look at what "
            "the others print: a process that prints nothing is missing, or cannot be reached",
            file=sys.stderr,
            flush=True,
        )
        os._exit(HANGS)


def _here():
    import jax

    return f"process {jax.process_index()} on {socket.gethostname()}"


def _devices(mesh):
    """Describe the devices, and raise ValueError if processes have different ones."""
    import jax

    local_devices = jax.local_devices()
    stats = local_devices[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    memory = "unknown memory" if limit is None else f"{limit / 2**30:.1f} GiB"
    description = f"{len(local_devices)} x {local_devices[0].device_kind} with {memory}"
    _same("devices", description)
    axis_sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    return f"{jax.process_count()} x ({description}); mesh {axis_sizes or 'of one device'}"


def _versions():
    """Describe the versions, and raise ValueError unless all processes have the same ones."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    for name, version in versions.items():
        _same(f"the version of {name}", version)
    return ", ".join(f"{name} {v}" for name, v in versions.items() if v != "missing")


def _same(subject, value):
    """Raise ValueError, which names the processes, unless all processes have the same value."""
    from deepseek_jax.parallel.processes import from_each

    reports = from_each([socket.gethostname(), value])
    differences = [
        f"{i} on {host}: {v}" for i, (host, v) in enumerate(reports) if v != reports[0][1]
    ]
    if differences:
        raise ValueError(
            f"--check: {subject} must be the same everywhere; process 0 on {reports[0][0]} has "
            f"{reports[0][1]}, and process {'; process '.join(differences)}"
        )


def _placement(mesh):
    """Describe how the mesh's axes lie on the torus.

    Raises:
        ValueError: The devices are not in the same order in all processes.
    """
    from deepseek_jax.parallel.torus import placement_text

    ids = [device.id for device in mesh.devices.flat]
    _same("the order of the mesh's devices", ids)
    return placement_text(mesh) or f"{len(ids)} devices in the order of jax.devices()"


def _collectives(mesh):
    """Sum large arrays along each axis of the mesh, time it, and compare with numpy's sums."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    spec = PartitionSpec(mesh.axis_names)
    numbers = np.arange(mesh.size, dtype=np.float32).reshape(mesh.devices.shape)
    device_numbers = jax.make_array_from_callback(
        (mesh.size,), NamedSharding(mesh, spec), lambda index: numbers.reshape(-1)[index]
    )
    messages = jax.jit(lambda x: jnp.repeat(x[:, None], MESSAGE_BYTES // 4, axis=1))(device_numbers)
    timings = []
    for dim, axis in enumerate(mesh.axis_names):
        if mesh.shape[axis] == 1:
            continue
        sum_along = functools.partial(jax.lax.psum, axis_name=axis)
        sum_program = jax.jit(jax.shard_map(sum_along, mesh=mesh, in_specs=spec, out_specs=spec))
        jax.block_until_ready(sum_program(messages))
        began = time.perf_counter()
        result = jax.block_until_ready(sum_program(messages))
        timings.append(f"{axis} {1000 * (time.perf_counter() - began):.0f} ms")
        expected = np.broadcast_to(numbers.sum(dim, keepdims=True), numbers.shape).reshape(-1)
        for shard in result.addressable_shards:
            shard_sums, shard_expected = np.asarray(shard.data), expected[shard.index[0]]
            wrong_sums = shard_sums[shard_sums != shard_expected[:, None]]
            if wrong_sums.size:
                raise RuntimeError(
                    f"--check: a sum along {axis} has {wrong_sums[0]} on {shard.device} of {_here()}, and "
                    f"should be {shard_expected[0]}: the device or its link is faulty"
                )
    size = f"{MESSAGE_BYTES // 2**20} MiB a device"
    return f"sums of {size} along " + ", ".join(timings) if timings else "a single device has none"


def _files(experiment, config, workdir, describe_data):
    """Check the work directory, and describe it and the data.

    All processes must see the directory, and no other run may use it.
    describe_data(folder, claim) reads the data and describes them.
    """
    from deepseek_jax.parallel.processes import barrier

    with check_workdir(workdir, config, experiment.recorded) as (folder, claim):
        try:
            return f"{workdir}; {describe_data(folder, claim)}"
        finally:
            barrier("the data is checked")
