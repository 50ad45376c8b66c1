"""Attention over rows that are split by token: inside it they are split by head (arXiv:2309.14509)."""

from deepseek_jax.parallel.shard import axis_parts, constrain, current_mesh, partition_spec

HEADS = ("batch", None, "attention_heads", None)


def by_heads(q, k, v, segment_ids):
    """Reshard from some tokens of all heads to all tokens of some heads, [b t h x] each, and gather
    segment_ids [b t].

    by_tokens is the way back. Where the heads of one array do not split over the devices, q stays split by
    token and each device gathers whole rows of k and v instead.
    """
    mesh = current_mesh()
    if mesh is None or mesh.shape["context"] == 1:
        return q, k, v, segment_ids
    # Here, or an attention that works through blocks would gather them at every block
    segment_ids = constrain(segment_ids, ("batch", None))
    parts = axis_parts(mesh, partition_spec(HEADS)[2])
    # With grouped queries there may be fewer key heads than devices
    if any(array.shape[2] % parts for array in (q, k, v)):
        k, v = (constrain(array, ("batch", None, "kv_heads", None)) for array in (k, v))
        return q, k, v, segment_ids
    return *(constrain(array, HEADS) for array in (q, k, v)), segment_ids


def by_tokens(out):
    """Reshard the output of attention [b t h u] back to some tokens of all heads."""
    mesh = current_mesh()
    if mesh is not None and mesh.shape["context"] > 1:
        # Pinned before, too: else the blocks of an attention that works through them would be split by
        # token, and travel at every block
        out = constrain(out, HEADS)
    return constrain(out, ("batch", "seq", "heads", None))
