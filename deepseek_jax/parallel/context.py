"""Attention over rows that are split by token: split by head for its while (arXiv:2309.14509)."""

from deepseek_jax.parallel.shard import axis_parts, constrain, current_mesh, partition_spec

HEADS = ("batch", None, "attention_heads", None)


def by_heads(q, k, v):
    """Give each device whole rows of some heads, in place of some tokens of all: [b t h x] each.

    What comes of them goes back where its reader wants it. Where the fewest heads do not split so far, each
    device gathers the keys and values of whole rows instead.
    """
    mesh = current_mesh()
    if mesh is None or mesh.shape["context"] == 1:
        return q, k, v
    parts = axis_parts(mesh, partition_spec(HEADS)[2])
    if any(array.shape[2] % parts for array in (q, k, v)):
        return q, *(constrain(array, ("batch", None, "kv_heads", None)) for array in (k, v))
    return tuple(constrain(array, HEADS) for array in (q, k, v))
