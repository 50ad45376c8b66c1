"""Gather a weight inside shard_map, so that its gradient is cut into shares as it is summed.

If the weight were gathered outside, the whole gradient would be summed first and cut afterwards.

Tests: tests/parallel/test_linear.py.
"""

import functools

import jax
import jax.numpy as jnp


def split_over(mesh, entry):
    """Return the mesh axes of more than one device in an entry of a PartitionSpec."""
    split = (entry,) if isinstance(entry, str) else entry or ()
    return tuple(axis for axis in split if mesh.shape[axis] > 1)


def gathered(mesh, weight, entry, dim: int, dtype: str):
    """Gather a device's share of a weight over other devices, in dtype.

    The gradient is rounded to dtype once, summed in float32, and cut into shares as it is summed.

    Args:
        mesh: The mesh.
        weight: The device's share.
        entry: The entry of dimension `dim` in the weight's PartitionSpec.
        dim: The dimension to gather.
        dtype: The dtype of the result.
    """
    split = split_over(mesh, entry)
    return _gathered(weight, split, dim, dtype) if split else weight


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(weight, axes, dim, dtype):
    return jax.lax.all_gather(weight.astype(dtype), axes, axis=dim, tiled=True)


def _forward(weight, axes, dim, dtype):
    # The empty array tells the backward pass the dtype: what is saved must be an array
    return _gathered(weight, axes, dim, dtype), jnp.zeros(0, weight.dtype)


def _backward(axes, dim, dtype, like, cotangent):
    cotangent = cotangent.astype(jnp.float32)
    gradient = jax.lax.psum_scatter(cotangent, axes, scatter_dimension=dim, tiled=True)
    return (gradient.astype(like.dtype),)


_gathered.defvjp(_forward, _backward)
