"""Which machine a program is for, where another one traces it."""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.grouped_matmul import grouped_matmul
from deepseek_jax.ops.platform import platform


def products():
    """The text of grouped_matmul as it is traced now."""

    def f(rows, kernel, sizes):
        return grouped_matmul(rows, kernel, sizes)

    arrays = jnp.ones((8, 2)), jnp.ones((2, 2, 3)), jnp.array([4, 4])
    return lambda: str(jax.make_jaxpr(f)(*arrays))


def test_the_device_that_a_program_is_traced_for_says_what_it_is_made_of():
    """Oracle: by hand: conftest's backend is a CPU; a default device, however it is given, stands before it;
    the grouped product takes its form for TPU there and the one for CPU here.
    """
    traced = products()
    assert platform() == "cpu" and "ragged_dot" not in traced()
    with jax.default_device("tpu"):
        assert platform() == "tpu" and "ragged_dot" in traced()
    with jax.default_device(jax.devices()[1]):
        assert platform() == "cpu" and "ragged_dot" not in traced()
    assert platform() == "cpu"
