"""The fingerprint of a tree of arrays."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.ops.fingerprint import GOLDEN, fingerprint, fingerprint_as
from deepseek_jax.parallel import make_mesh
from launch.planning.topology import planned_mesh
from tests import tpu

TREE = {
    "a": jax.random.normal(jax.random.key(0), (8, 3, 16)),
    "b": jax.random.normal(jax.random.key(1), (16,), jnp.bfloat16),
    "c": jnp.arange(8, dtype=jnp.int32),
}


def by_hand(tree):
    """The definition as a loop over Python's own integers."""

    def mixed(x):
        x ^= x >> 16
        x = x * 0x85EBCA6B % 2**32
        x ^= x >> 13
        x = x * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    total = 0
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        bits = np.asarray(leaf).reshape(-1).view(f"uint{8 * leaf.dtype.itemsize}").tolist()
        of_leaf = sum(mixed(x ^ mixed(place * GOLDEN % 2**32)) for place, x in enumerate(bits))
        total += mixed((of_leaf + index) % 2**32)
    return total % 2**32


def test_a_fingerprint_is_the_sum_of_its_definition():
    """Oracle: a loop over Python's integers."""
    assert int(jax.jit(fingerprint)(TREE)) == by_hand(TREE)


@pytest.mark.parametrize("spec", [("fsdp",), (None, None, "fsdp")])
def test_a_fingerprint_does_not_depend_on_the_sharding(spec):
    """Oracle: the tree on one device."""
    mesh = make_mesh(fsdp=8)
    split = NamedSharding(mesh, PartitionSpec(*spec))
    sharded = jax.device_put(TREE, {"a": split, "b": split if len(spec) == 1 else None, "c": None})
    assert len(sharded["a"].sharding.device_set) == 8
    assert jax.jit(fingerprint)(sharded) == fingerprint(TREE)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"a": t["a"].at[3, 1, 7].multiply(1 + 2**-23)},  # the last bit of one number
        lambda t: t | {"b": t["b"].at[0].set(-t["b"][0])},
        lambda t: t | {"c": t["c"].at[jnp.array([1, 2])].set(t["c"][jnp.array([2, 1])])},
        lambda t: t | {"a": t["a"].swapaxes(0, 2)},
    ],
    ids=["one bit", "a sign", "two numbers swapped", "an axis turned"],
)
def test_a_changed_tree_has_another_fingerprint(change):
    """Oracle: by hand: the trees differ."""
    assert int(fingerprint(change(TREE))) != int(fingerprint(TREE))


def test_a_fingerprint_in_another_dtype_is_that_of_the_array_in_it():
    """Oracle: ml_dtypes, which rounds to nearest even, and widens; a loop over Python's integers."""
    numbers = np.random.default_rng(0).normal(size=(64, 33)).astype(np.float32)
    # Two ties, an overflow, a denormal, and numbers that are none
    numbers[0, :7] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.4e38, -1e-40, np.inf, -np.inf, np.nan
    rounded = numbers.astype(ml_dtypes.bfloat16)
    number_of = jax.jit(fingerprint_as, static_argnames="dtype")
    for array, dtype, wanted in (
        (numbers, "float32", numbers),
        (numbers, "bfloat16", rounded),
        (rounded, "float32", rounded.astype(np.float32)),
        (rounded, "bfloat16", rounded),
        (np.arange(8, dtype=np.int32), "int32", np.arange(8, dtype=np.int32)),
    ):
        assert int(number_of(jnp.asarray(array), dtype=dtype)) == by_hand(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tpu_needs_no_copy_of_an_array_for_its_fingerprint(dtype):
    """Oracle: the compiler's own count of temporary memory."""
    with tpu.compiling():
        mesh, _ = planned_mesh("v5p:2x2x1", dict(data=1, fsdp=4))
        place = NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))
        array = jax.ShapeDtypeStruct((64, 256, 1024), dtype, sharding=place)
        for wanted in ("float32", "bfloat16"):
            traced = jax.jit(fingerprint_as, static_argnames="dtype").trace(array, dtype=wanted)
            compiled = traced.lower(lowering_platforms=("tpu",)).compile()
            assert compiled.memory_analysis().temp_size_in_bytes < 2**16
