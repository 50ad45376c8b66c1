"""Fingerprints of arrays: a number that shows whether two trees are equal bit for bit."""

import jax
import jax.numpy as jnp

# Odd, so that every position gets another multiple of it
GOLDEN = 0x9E3779B1
# Dtypes that fingerprint_as converts
FLOATS = ("float32", "bfloat16")
# Bits of float32
INFINITY, NAN = 0x7F800000, 0x7FC00000


def fingerprint(tree):
    """Return a sum over the bits of every array, mixed with their positions: uint32[].

    The result does not depend on how the arrays are sharded, because sums of integers do not depend
    on their order. Two different trees have the same fingerprint with probability 2^-32.

    Args:
        tree: Arrays of 8, 16 or 32 bits per number.
    """
    total = jnp.uint32(0)
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        position, stride = jnp.zeros(leaf.shape, jnp.uint32), jnp.uint32(1)
        # An index for each axis, because flattening a sharded array would gather it
        for axis in reversed(range(leaf.ndim)):
            axis_index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            position += axis_index * stride
            stride *= jnp.uint32(leaf.shape[axis])
        leaf_bits = _mixed(bits.astype(jnp.uint32) ^ _mixed(position * jnp.uint32(GOLDEN)))
        total += _mixed(leaf_bits.sum(dtype=jnp.uint32) + jnp.uint32(index))
    return total


def fingerprint_as(leaf, dtype: str):
    """Return the `fingerprint` that an array would have in another dtype: uint32[].

    This works between float32 and bfloat16, and all NaNs are the same here. For a third dtype the
    result is the array's own fingerprint.

    Rounding to bfloat16 works on integers, to nearest even. The result is therefore the same on
    every platform, and equals the fingerprint of an array that a file reader rounded on the host.
    """
    if dtype not in FLOATS:
        return fingerprint(leaf)
    if leaf.dtype == jnp.float32:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint16).astype(jnp.uint32) << 16
    bits = jnp.where(bits & 0x7FFFFFFF > INFINITY, jnp.uint32(NAN), bits)
    if dtype == "float32":
        return fingerprint(bits)
    return fingerprint(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(jnp.uint16))


def _mixed(x):
    """Mix bits by MurmurHash3's finaliser: every input bit moves half of the output's bits."""
    x ^= x >> 16
    x *= jnp.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
