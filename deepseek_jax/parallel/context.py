"""Attention over rows that are split by token: inside it they are split by head (arXiv:2309.14509)."""

import jax
import jax.numpy as jnp

from deepseek_jax.parallel.shard import axis_parts, constrain, current_mesh, partition_spec

HEADS = ("batch", None, "attention_heads", None)


def over_heads(attention, q, k, v, segment_ids):
    """Call attention(q, k, v, segment_ids=...): each device attends over whole rows with its own heads.

    q: [b t h x], k: [b t k x], v: [b t k u], segment_ids: int32[b t], and the result, [b t h u], are split by
    token. attention treats each row, and each query head with its key head, alone. Where the queries' heads
    or the rows do not split over the devices, q stays split by token and each device gathers whole rows of k
    and v. Then attention gets kernels=False, because a kernel runs on one device.
    """

    def local(q, k, v, segment_ids):
        return attention(q, k, v, segment_ids=segment_ids)

    mesh = current_mesh()
    if mesh is None:
        return local(q, k, v, segment_ids)
    spec = partition_spec(HEADS)
    rows, parts = axis_parts(mesh, spec[0]), axis_parts(mesh, spec[2])
    # Here, or an attention that works through blocks would gather them at every block
    segment_ids = constrain(segment_ids, ("batch", None))
    if q.shape[2] % parts or len(q) % rows:
        k, v = (constrain(array, ("batch", None, "kv_heads", None)) for array in (k, v))
        out = attention(q, k, v, segment_ids=segment_ids, kernels=False)
        return constrain(out, ("batch", "seq", "heads", None))
    if k.shape[2] % parts:
        # Fewer key heads than devices: every query head gets its own copy
        k, v = (jnp.repeat(array, q.shape[2] // array.shape[2], axis=2) for array in (k, v))
    out = jax.shard_map(
        local,
        in_specs=(spec, spec, spec, partition_spec(("batch", None))),
        out_specs=spec,
        # Custom gradients do not declare the axes over which they vary
        check_vma=False,
    )(q, k, v, segment_ids)
    return constrain(out, ("batch", "seq", "heads", None))
