"""Tokens to the devices that hold their experts, and back (arXiv:2412.19437, section 3.2)."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from deepseek_jax.ops.grouped_matmul import capacity_layout, combine, rows_by_expert
from deepseek_jax.parallel.shard import axis_parts, current_mesh, partition_spec


def expert_parallel(run_experts, x, experts, weights, kernels, kernel_axes):
    """run_experts over the mesh of `jax.set_mesh`: each device its own tokens and its own experts.

    run_experts(x [m d], experts int32[m a], weights float32[m a], kernels) -> [m d], a pure function of
    tokens and of a tuple of kernels that lead with an axis of experts; linear in the kernels' split "mlp"
    axis. x: [b t d]; experts: int32[b t a]; weights: float32[b t a]. kernel_axes: each kernel's logical
    names. Tokens travel along the mesh axis "expert" by all_to_all, every choice one row, with room for the
    worst case: none is ever dropped. Without a mesh, or where rows or tokens do not split (a rollout's),
    run_experts runs as it is, and the compiler places it. Returns [b t d].
    """
    mesh = current_mesh()

    def local(x_btd, experts_bta, weights_bta, kernels):
        a = experts_bta.shape[-1]
        arrays = (
            x_btd.reshape(-1, x_btd.shape[-1]),
            experts_bta.reshape(-1, a),
            weights_bta.reshape(-1, a),
        )
        if mesh is None or mesh.shape["expert"] == 1:
            y_md = run_experts(*arrays, kernels)
        else:
            y_md = _exchanged(run_experts, *arrays, kernels)
        if mesh is not None and mesh.shape["tensor"] > 1:
            y_md = jax.lax.psum(y_md.astype(jnp.float32), "tensor").astype(y_md.dtype)
        return y_md.reshape(x_btd.shape)

    tokens = partition_spec(("batch", "seq", None))
    if mesh is None or not _splits(mesh, x.shape, tokens):
        mesh = None
        return local(x, experts, weights, kernels)
    places = tuple(_whole_embed(axes) for axes in kernel_axes)
    return jax.shard_map(
        local,
        in_specs=(tokens, tokens, tokens, places),
        out_specs=tokens,
        check_vma=False,  # custom gradients know nothing of which axes they vary over
    )(x, experts, weights, kernels)


def _exchanged(run_experts, x_md, experts_ma, weights_ma, kernels):
    """run_experts on this device's experts, for the tokens of all devices along the axis "expert"."""
    shards, held = jax.lax.axis_size("expert"), len(kernels[0])
    capacity = len(x_md) * min(experts_ma.shape[1], held)  # if all went to one device
    layout = capacity_layout(experts_ma // held, shards, capacity)
    # Which of its experts each row is for; rows that nothing fills are for none
    expert_r = jnp.full(shards * capacity, held, jnp.int32)
    expert_r = expert_r.at[layout.row_of_choice].set(experts_ma % held)

    received_rd = _to_peers(rows_by_expert(x_md, layout))
    received_r1 = _to_peers(expert_r)[:, None]
    done_rd = run_experts(received_rd, received_r1, jnp.ones(received_r1.shape), kernels)
    return combine(_to_peers(done_rd), weights_ma, layout)


def _to_peers(rows):
    """Row block i of every device to device i along the axis "expert"; its own inverse."""
    return jax.lax.all_to_all(rows, "expert", split_axis=0, concat_axis=0, tiled=True)


def _splits(mesh, shape, spec):
    pairs = zip(shape, spec, strict=True)
    return all(size % axis_parts(mesh, entry) == 0 for size, entry in pairs)


def _whole_embed(axes):
    """A kernel's place, gathered over "embed": each device multiplies by whole columns."""
    return PartitionSpec(*partition_spec(tuple(None if axis == "embed" else axis for axis in axes)))
