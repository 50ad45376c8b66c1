"""A function of single tokens, each device its share of them."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from deepseek_jax.parallel.shard import axis_parts, current_mesh, partition_spec


def over_tokens(score, hidden, head, targets):
    """score(hidden [m d], head [v d], targets int32[m]) -> arrays [m], for hidden [b t d], targets [b t].

    score must treat each token alone. Over the mesh of `jax.set_mesh` tokens are split over every axis, the
    head is gathered once, and its gradient summed once, however many chunks score works through. Returns
    the arrays as [b t].
    """

    def local(hidden_btd, head, targets_bt):
        hidden_md = hidden_btd.reshape(-1, hidden_btd.shape[-1])
        results = score(hidden_md, head, targets_bt.reshape(-1))
        return jax.tree.map(lambda x: x.reshape(targets_bt.shape), results)

    mesh = current_mesh()
    if mesh is None:
        return local(hidden, head, targets)
    spec = partition_spec(("batch", "seq_of_head"))
    b, t = targets.shape
    missing = [
        (0, -size % axis_parts(mesh, entry)) for size, entry in zip((b, t), spec, strict=True)
    ]
    results = jax.shard_map(
        local,
        in_specs=(spec, PartitionSpec(), spec),
        out_specs=spec,
        check_vma=False,  # custom gradients know nothing of which axes they vary over
    )(jnp.pad(hidden, [*missing, (0, 0)]), head, jnp.pad(targets, missing))
    return jax.tree.map(lambda x: x[:b, :t], results)
