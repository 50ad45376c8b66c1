"""The numbers of each chip, by hand, and its compiler's options, by the compiler."""

import jax
import jax.numpy as jnp
import pytest

from deepseek_jax.costs.chips import CHIPS, chip_of
from deepseek_jax.ops.platform import SIZES
from launch.planning.topology import planned_mesh
from tests import tpu

# (GiB that a program may use, GB/s of memory, TFLOP/s in bfloat16 and in the faster dtype, GB/s of a link one
# way, devices)
PUBLISHED = {
    "v5e": (15.75, 819, 197, ("s8", 394), 45, 1),
    "v5p": (95, 2765, 459, ("s8", 918), 90, 1),
    "v6e": (32, 1638, 918, ("s8", 1836), 90, 1),
    "tpu7x": (192, 7380, 2307, ("f8e4m3fn", 4614), 100, 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_device_has_its_share_of_the_published_numbers(name):
    """Oracle: Google Cloud's pages of the chips, typed by hand; each core of a tpu7x is a device."""
    gib, memory, peak, (dtype, faster), link, devices = PUBLISHED[name]
    device = chip_of([CHIPS[name]])
    assert (CHIPS[name].devices, device.devices) == (devices, 1)
    found = (
        device.hbm_bytes / 2**30,
        device.hbm_bytes_per_second / 1e9,
        device.flops_per_second / 1e12,
        device.peaks[dtype] / 1e12,
        device.link / 1e9,
        # 50 Gbit/s a chip
        device.network / 1e9,
    )
    shares = [number / devices for number in (gib, memory, peak, faster, link, 6.25)]
    assert found == pytest.approx(shares)


@pytest.mark.parametrize("name", CHIPS)
def test_keys_are_gathered_where_a_row_of_them_is_quick_enough(name):
    """Oracle: compiled plans of both forms, in launch/pods.md: {row's length in selections: most ns of a
    gathered row}.
    """
    break_evens = {2: 1.1, 4: 2.1, 8: 4.5, 16: 9.6}
    assumed_ns = CHIPS[name].seconds_per_row * 1e9
    ratio = SIZES["keys_to_gather_from"]["tpu"]
    assert break_evens[ratio // 2] < assumed_ns < break_evens[ratio]


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
