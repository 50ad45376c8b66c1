"""A number that says whether two trees of arrays are the same, bit for bit."""

import jax
import jax.numpy as jnp

GOLDEN = 0x9E3779B1  # odd, so that every position gets another multiple of it
# Dtypes that fingerprint_as converts, and bits of float32
FLOATS = ("float32", "bfloat16")
INFINITY, NAN = 0x7F800000, 0x7FC00000


def fingerprint(tree):
    """uint32[]: a sum over the bits of every array, mixed with their positions.

    tree: of arrays of 8, 16 or 32 bits a number. Sums of integers do not depend on their order, so the result
    does not depend on how the arrays are sharded. Two trees that differ share it with a chance of 2^-32.
    """
    total = jnp.uint32(0)
    for index, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        position, stride = jnp.zeros(leaf.shape, jnp.uint32), jnp.uint32(1)
        # An index for each axis, because flattening a sharded array would gather it
        for axis in reversed(range(leaf.ndim)):
            own = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            position += own * stride
            stride *= jnp.uint32(leaf.shape[axis])
        of_leaf = _mixed(bits.astype(jnp.uint32) ^ _mixed(position * jnp.uint32(GOLDEN)))
        total += _mixed(of_leaf.sum(dtype=jnp.uint32) + jnp.uint32(index))
    return total


def fingerprint_as(leaf, dtype: str):
    """uint32[]: `fingerprint` of an array as it would be in another dtype, of float32 and bfloat16; all NaNs
    are the same here. An array of a third dtype has only its own.

    Integers round to bfloat16, to nearest even, so that the result is the same on every platform, and that of
    an array which a reader of files has rounded on the host.
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
    """MurmurHash3's finaliser: every bit of the input moves half of the output's bits."""
    x ^= x >> 16
    x *= jnp.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
