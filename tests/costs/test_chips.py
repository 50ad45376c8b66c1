"""The compiler's options of each chip, by the compiler."""

import jax
import jax.numpy as jnp
import pytest

from launch.planning.topology import ENVIRONMENT, planned_mesh


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_a_chips_compiler_takes_its_options(monkeypatch, topology):
    """Oracle: libtpu, which compiles with them and refuses a name that it does not know."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    mesh, chip = planned_mesh(topology, dict(data=-1))
    device = mesh.devices.flat[0]
    place = jax.sharding.SingleDeviceSharding(device)
    shape = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place)
    with jax.default_device(device):
        lowered = jax.jit(jnp.sin).trace(shape).lower(lowering_platforms=("tpu",))
        lowered.compile(compiler_options=chip.options)
        with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
            lowered.compile(compiler_options=chip.options | {"xla_tpu_unknown": "true"})
