"""Attention over rows that are split by token: inside it they split by head (arXiv:2309.14509)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from deepseek_jax.ops.attention import attend, attend_branches
from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.window_attention import Keys, attend_window
from deepseek_jax.parallel.gather import gathered, split_over
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


def attend_window_rows(q: jax.Array, keys: Keys, *, window: int, scale: float) -> jax.Array:
    """Compute ops.window_attention.attend_window over the devices of the mesh.

    All heads read one key of a token, and h heads of queries are h times as much. So the queries
    stay where they are, split by token and by head, and each device gathers whole rows of keys.

    Args:
        q: [b t h x].
        keys: The keys of whole rows; keys.entries.selected is split by token.
        window: As in attend_window.
        scale: As in attend_window.

    Returns:
        [b t h x], split as q.
    """
    mesh, spec = current_mesh(), partition_spec(("batch", "seq", "heads", None))
    if mesh is None or any(
        size % axis_parts(mesh, axes) for size, axes in zip(q.shape, spec, strict=True)
    ):
        return attend_window(q, keys, window=window, scale=scale)

    def local(q, selected, sink, rows):
        kv, segments, entries = rows
        entries = None if entries is None else entries._replace(selected=selected)
        own, first = Keys(kv, segments, sink, entries), _first_query(mesh, spec[1], q)
        return attend_window(q, own, window=window, scale=scale, first=first)

    selected, entries = None, keys.entries
    if entries is not None:
        selected, entries = entries.selected, entries._replace(selected=None)
    names = ("batch", "seq"), ("heads",), ("batch",)
    return jax.shard_map(
        local,
        in_specs=(spec, *map(partition_spec, names)),
        out_specs=spec,
        # Custom gradients do not declare the axes over which they vary
        check_vma=False,
    )(q, selected, keys.sink, (keys.kv, keys.segments, entries))


def over_queries(function: Callable, queries: Any, keys: Any, whole: Any = None) -> Any:
    """Call function(queries, keys, first) so that each device computes for its own queries.

    Args:
        function: Its result is a tree of [b t ...]. first is int32[], the index in its row of a
            device's first query.
        queries: A tree of [b t ...].
        keys: A tree of [b s ...]; each device gathers whole rows.
        whole: A tree that every device gets whole. If it is not None, it is function's last
            argument.
    """
    whole = () if whole is None else (whole,)
    mesh = current_mesh()
    if mesh is None:
        return function(queries, keys, 0, *whole)
    spec = partition_spec(("batch", "queries"))
    b, t = jax.tree.leaves(queries)[0].shape[:2]
    if b % axis_parts(mesh, spec[0]):
        return function(queries, keys, 0, *whole)
    num_parts, num_keys = axis_parts(mesh, spec[1]), jax.tree.map(lambda x: x.shape[1], keys)

    def local(queries, keys, *whole):
        first = _first_query(mesh, spec[1], jax.tree.leaves(queries)[0])
        keys = jax.tree.map(lambda x, s: _whole_rows(mesh, x, spec[1])[:, :s], keys, num_keys)
        return function(queries, keys, first, *whole)

    def pad_tokens(x):
        return jnp.pad(x, [(0, 0), (0, -x.shape[1] % num_parts)] + [(0, 0)] * (x.ndim - 2))

    out = jax.shard_map(
        local,
        in_specs=(spec, spec, *(PartitionSpec() for _ in whole)),
        out_specs=spec,
        check_vma=False,
    )(*jax.tree.map(pad_tokens, (queries, keys)), *whole)
    return jax.tree.map(lambda x: x[:, :t], out)


def _whole_rows(mesh, x, axes):
    """Gather rows [b s/n ...], inside shard_map. Their gradient is summed in float32."""
    # DeepSeek-V4's entries of a row that is shorter than one of them, as when parameters are created
    if not x.shape[1]:
        return x
    if jnp.issubdtype(x.dtype, jnp.floating):
        # As a matrix: libtpu 0.0.50 does not lower the reduce-scatter of float32[1 s z] for sparse cores
        b, s, *inner = x.shape
        flat = jnp.swapaxes(x, 0, 1).reshape(s, -1)
        whole = gathered(mesh, flat, axes, 0, x.dtype.name)
        return jnp.swapaxes(whole.reshape(-1, b, *inner), 0, 1)
    split = split_over(mesh, axes)
    return jax.lax.all_gather(x, split, axis=1, tiled=True) if split else x


def _first_query(mesh, axes, q_bt):
    """Return the index in its row of a device's first query, inside shard_map."""
    return jax.lax.axis_index(axes) * q_bt.shape[1] if axis_parts(mesh, axes) > 1 else 0


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
