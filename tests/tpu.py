"""Compiling for a TPU that is not there, in the test's own process."""

import contextlib
import math
import os
from unittest import mock

import jax

from launch.planning.topology import ENVIRONMENT, planned_mesh

TOPOLOGIES = ["v5p:2x2x1", "v5e:2x2", "v6e:2x2", "tpu7x:2x2x1"]


@contextlib.contextmanager
def compiling():
    """A block that compiles for TPUs. It keeps no program: without a TPU none can be read back. Programs say
    where in a file their kernels come from, as a user's do: XLA runs two equal ones of two places twice.
    """
    own = dict(
        jax_persistent_cache_min_compile_time_secs=math.inf, jax_traceback_in_locations_limit=10
    )
    before = {name: getattr(jax.config, name) for name in own}
    for name, value in own.items():
        jax.config.update(name, value)
    try:
        with mock.patch.dict(os.environ, ENVIRONMENT):
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def compiled(topology: str, function, *shapes):
    """A function compiled for one device of a topology: jax.stages.Compiled. shapes: (shape, dtype) of each
    array that it takes.
    """
    with compiling():
        mesh, _ = planned_mesh(topology, dict(data=-1))
        device = mesh.devices.flat[0]
        place = jax.sharding.SingleDeviceSharding(device)
        arrays = [jax.ShapeDtypeStruct(*shape, sharding=place) for shape in shapes]
        with jax.default_device(device):
            traced = jax.jit(function).trace(*arrays)
            return traced.lower(lowering_platforms=("tpu",)).compile()
