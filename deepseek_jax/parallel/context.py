"""Attention over rows that are split by token: inside it they split by head (arXiv:2309.14509)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deepseek_jax.ops.attention import attend, attend_branches
from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.parallel.shard import axis_parts, constrain, current_mesh, partition_spec

HEADS = ("batch", None, "attention_heads", None)


def attend_rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    branches: Branches | None,
    scale: float,
    selected: jax.Array | None = None,
) -> jax.Array:
    """Attend within rows, over the devices of the mesh, and save the result for the backward pass.

    Args:
        q: [b t h x].
        k: [b t k x].
        v: [b t k u].
        segment_ids: int32[b t], 0 on padding.
        branches: The layout of branches, or None.
        scale: The factor on attention's scores.
        selected: uint8[b t z], see ops.attention, or None.

    Returns:
        [b t h u].
    """
    attention = functools.partial(attend, scale=scale)
    if branches is not None:
        attention = functools.partial(attend_branches, scale=scale, layout=branches)
    return save_for_backward(over_heads(attention, q, k, v, segment_ids, selected))


def over_heads(attention, q, k, v, segment_ids, selected=None):
    """Call an attention function so that each device attends over whole rows with its own heads.

    If the queries' heads or the rows do not split over the devices, q stays split by token and each
    device gathers whole rows of k and v. Then attention gets kernels=False, because a kernel runs
    on one device.

    Args:
        attention: A function attention(q, k, v, segment_ids=..., selected=...). It must compute
            each row, and each query head with its key head, independently of the others.
        q: [b t h x], split by token, as all arrays here.
        k: [b t k x].
        v: [b t k u].
        segment_ids: int32[b t].
        selected: uint8[b t z] or None.

    Returns:
        [b t h u], split by token.
    """

    def local(q, k, v, segment_ids, selected):
        return attention(q, k, v, segment_ids=segment_ids, selected=selected)

    mesh = current_mesh()
    if mesh is None:
        return local(q, k, v, segment_ids, selected)
    spec = partition_spec(HEADS)
    row_parts, head_parts = axis_parts(mesh, spec[0]), axis_parts(mesh, spec[2])
    # Gather here: an attention that works through blocks would gather them at every block
    segment_ids = constrain(segment_ids, ("batch", None))
    if selected is not None:
        selected = constrain(selected, ("batch", None, None))
    if q.shape[2] % head_parts or len(q) % row_parts:
        k, v = (constrain(array, ("batch", None, "kv_heads", None)) for array in (k, v))
        out = attention(q, k, v, segment_ids=segment_ids, selected=selected, kernels=False)
        return constrain(out, ("batch", "seq", "heads", None))
    if k.shape[2] % head_parts:
        # Fewer key heads than devices: every query head gets its own copy
        k, v = (jnp.repeat(array, q.shape[2] // array.shape[2], axis=2) for array in (k, v))
    out = jax.shard_map(
        local,
        in_specs=(spec, spec, spec, *[partition_spec(("batch", None))] * 2),
        out_specs=spec,
        # Custom gradients do not declare the axes over which they vary
        check_vma=False,
    )(q, k, v, segment_ids, selected)
    return constrain(out, ("batch", "seq", "heads", None))


def over_queries(function: Callable, queries: Any, keys: Any) -> Any:
    """Call function(queries, keys, first) so that each device computes for its own queries.

    Args:
        function: Its result is a tree of [b t ...]. first is int32[], the index in its row of a
            device's first query.
        queries: A tree of [b t ...].
        keys: A tree of [b s ...]; each device gathers whole rows.
    """
    mesh = current_mesh()
    if mesh is None:
        return function(queries, keys, 0)
    spec = partition_spec(("batch", "queries"))
    b, t = jax.tree.leaves(queries)[0].shape[:2]
    if b % axis_parts(mesh, spec[0]):
        return function(queries, keys, 0)
    num_parts = axis_parts(mesh, spec[1])

    def local(queries, keys):
        first = 0
        if num_parts > 1:
            first = jax.lax.axis_index(spec[1]) * jax.tree.leaves(queries)[0].shape[1]
        return function(queries, keys, first)

    def pad_queries(x):
        return jnp.pad(x, [(0, 0), (0, -t % num_parts)] + [(0, 0)] * (x.ndim - 2))

    out = jax.shard_map(
        local,
        in_specs=(spec, partition_spec(("batch",))),
        out_specs=spec,
        check_vma=False,
    )(jax.tree.map(pad_queries, queries), keys)
    return jax.tree.map(lambda x: x[:, :t], out)


def by_rows(function: Callable, *arrays: Any, axis: str = "batch") -> Any:
    """Call function(*arrays) on trees of [b ...], each device on its own rows.

    Args:
        function: It must compute each row independently of the others.
        axis: The logical name of the rows.
    """
    mesh, spec = current_mesh(), partition_spec((axis,))
    num_rows = len(jax.tree.leaves(arrays)[0])
    if mesh is None or num_rows % axis_parts(mesh, spec[0]):
        return function(*arrays)
    # A kernel does not declare the axes over which it varies
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)
