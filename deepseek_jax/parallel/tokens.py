"""Apply a function of single tokens, each device to its share of the tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from deepseek_jax.parallel.shard import axis_parts, current_mesh, partition_spec


def over_tokens(
    score: Callable, hidden: jax.Array, head: jax.Array, targets: Any, whole: Any = None
) -> Any:
    """Apply `score` to all tokens of hidden [b t d] and targets [b t ...].

    On the mesh of `jax.set_mesh` tokens are split over every axis, the head is gathered once, and
    its gradient is summed once, however many chunks score works through.

    Args:
        score: A function (hidden [m d], head [v d], targets) -> arrays [m]. It must compute each
            token's results from that token only.
        hidden: [b t d].
        head: [v d].
        targets: int32[b t], or a tree of all that score reads of a token.
        whole: A tree that every device gets whole and that has no gradient. If it is not None, it
            is score's last argument.

    Returns:
        The arrays of score, as [b t].
    """

    def local(hidden_btd, head, targets, *whole):
        b, t, _ = hidden_btd.shape
        flat_arrays = jax.tree.map(lambda x: x.reshape(b * t, *x.shape[2:]), (hidden_btd, targets))
        results = score(flat_arrays[0], head, flat_arrays[1], *whole)
        return jax.tree.map(lambda x: x.reshape(b, t), results)

    whole = () if whole is None else (whole,)
    mesh = current_mesh()
    if mesh is None:
        return local(hidden, head, targets, *whole)
    b, t, _ = hidden.shape
    (hidden, targets), spec = token_shards(mesh, (hidden, targets))
    results = jax.shard_map(
        local,
        in_specs=(spec, PartitionSpec(), spec, *(PartitionSpec() for _ in whole)),
        out_specs=spec,
        # Custom gradients do not declare the axes over which they vary
        check_vma=False,
    )(hidden, head, targets, *whole)
    # Remove the padding of token_shards
    return jax.tree.map(lambda x: x[:b, :t], results)


def token_shards(mesh: Mesh | AbstractMesh, arrays: Any) -> tuple[Any, PartitionSpec]:
    """Pad a tree of [b t ...] with zeros until its tokens split over every axis of the mesh.

    Returns:
        The arrays, and the PartitionSpec of their first two axes.
    """
    spec = partition_spec(("batch", "seq_of_head"))

    def fill(x):
        sizes_and_entries = zip(x.shape[:2], spec, strict=True)
        pad_widths = [(0, -size % axis_parts(mesh, entry)) for size, entry in sizes_and_entries]
        return jnp.pad(x, pad_widths + [(0, 0)] * (x.ndim - 2))

    return jax.tree.map(fill, arrays), spec
