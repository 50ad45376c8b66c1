"""What is set before JAX starts."""

import pytest

from deepseek_jax.recipes.environment import check_xla_flags

FLAGS = [
    ("--xla_nothing=3", "Unknown flag in XLA_FLAGS: --xla_nothing=3"),
    ("--xla_force_host_platform_device_count=x", "Couldn't interpret value x for flag xla_force"),
    ("xla_flags.txt", 'Could not open file "xla_flags.txt"'),
    ("--xla_cpu_max_isa=AVX --xla_tpu_no_such=1", "Unknown flag in XLA_FLAGS: --xla_tpu_no_such=1"),
]


@pytest.mark.parametrize("given, cause", FLAGS)
def test_a_flag_that_xla_does_not_know_is_one_message(given, cause):
    """Oracle: XLA's own words, which come with an abort in a process that uses it."""
    with pytest.raises(ValueError) as error:
        check_xla_flags(given)
    assert str(error.value).startswith(f"XLA_FLAGS={given}: {cause}")
    check_xla_flags("--xla_force_host_platform_device_count=8 --xla_cpu_max_isa=AVX2")
