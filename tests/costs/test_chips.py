"""The compiler's options of each chip, by the compiler."""

import jax
import jax.numpy as jnp
import pytest

from launch.planning.topology import planned_mesh
from tests import tpu


@pytest.mark.parametrize("topology", tpu.TOPOLOGIES)
def test_a_chips_compiler_takes_its_options(topology):
    """Oracle: libtpu, which compiles with them and refuses a name that it does not know."""
    with tpu.compiling():
        mesh, chip = planned_mesh(topology, dict(data=-1))
        place = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
        shape = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place)
        lowered = jax.jit(jnp.sin).trace(shape).lower(lowering_platforms=("tpu",))
        lowered.compile(compiler_options=chip.options)
        with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
            lowered.compile(compiler_options=chip.options | {"xla_tpu_unknown": "true"})
