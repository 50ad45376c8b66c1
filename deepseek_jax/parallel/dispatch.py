"""Send tokens to the devices that have their experts, and back (arXiv:2412.19437, section 3.2)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from deepseek_jax.ops.grouped_matmul import (
    capacity_layout,
    rows_by_expert,
    summed,
    weight_of_rows,
)
from deepseek_jax.ops.platform import choose, form_of
from deepseek_jax.parallel.bounded import ExpertProducts, run_ragged
from deepseek_jax.parallel.gather import gathered, split_over
from deepseek_jax.parallel.shard import axis_parts, constrain, current_mesh, partition_spec

TOKENS = ("batch", "seq", None)


class Kernels(NamedTuple):
    """The matrices of all experts.

    Attributes:
        arrays: The matrices; the first axis of each is experts.
        axes: The logical axes of each matrix.
        dtype: The dtype in which a device gathers the columns of its experts. Their gradients are
            rounded to it once, and summed in float32.
    """

    arrays: tuple[jax.Array, ...]
    axes: tuple[tuple[str | None, ...], ...]
    dtype: str = "float32"


def expert_parallel(
    products: ExpertProducts,
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    kernels: Kernels,
    *,
    buffer: float | None = None,
    saves_hidden: bool = False,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Run experts on the mesh of `jax.set_mesh`: each device has some tokens and some experts.

    Tokens travel along the mesh axes of the logical axis "experts", one row for each choice; no row
    is ever dropped. Without a mesh, or where rows or tokens do not split over it (in a rollout),
    the products get the rows of all tokens and the compiler places them.

    Args:
        products: What the experts compute.
        x: [b t d].
        experts: int32[b t a].
        weights: float32[b t a].
        kernels: The experts' two matrices.
        buffer: The room that a device has to receive rows in a ragged exchange: a multiple, at
            least 1, of the balanced share of m * a rows. None is room for the worst case. If more
            rows arrive on any device, all devices have room for the worst case and exchange at most
            bounded.AT_ONCE tokens each at once, so that it fits in memory. The result is the same, but
            takes longer.
        saves_hidden: With a buffer, save what products.up returns for the backward pass, see
            ops.remat.save_for_backward. By default the backward pass computes it again.
        implementation: "padded" is all_to_all, where every block has room for the worst case.
            "ragged" is parallel.bounded, which sends only rows with a token, into a receive buffer.
            None takes the choice of ops.platform.

    Returns:
        The result [b t d]; and float32[], 1 if rows overflowed the buffer, or None if no buffer can
        overflow.
    """
    mesh = current_mesh()
    kernel_specs = tuple(partition_spec(axes) for axes in kernels.axes)
    expert_axes = () if mesh is None else split_over(mesh, kernel_specs[0][0])
    exchange = choose(
        "expert_parallel",
        implementation,
        padded=functools.partial(_padded, expert_axes),
        ragged=functools.partial(run_ragged, expert_axes, buffer, saves_hidden),
    )

    def local(x_btd, experts_bta, weights_bta, matrices):
        a = experts_bta.shape[-1]
        if mesh is not None:
            matrices = tuple(
                _whole_columns(mesh, matrix, axes, kernels.dtype)
                for matrix, axes in zip(matrices, kernels.axes, strict=True)
            )
        arrays = (
            x_btd.reshape(-1, x_btd.shape[-1]),
            experts_bta.reshape(-1, a),
            weights_bta.reshape(-1, a),
        )
        overflowed = None
        if not expert_axes:
            y_md = products.of_tokens(*arrays, matrices)
        else:
            y_md, overflowed = exchange(products, *arrays, matrices)
        # Where the kernels' axis "mlp" is split, each device has a partial sum. Added in float32, the total
        # is rounded only once
        if mesh is not None and partial_axes:
            y_md = jax.lax.psum(y_md.astype(jnp.float32), partial_axes).astype(y_md.dtype)
        return y_md.reshape(x_btd.shape), overflowed

    mlp_entry = () if mesh is None else kernel_specs[0][kernels.axes[0].index("mlp")]
    partial_axes = split_over(mesh, mlp_entry)
    token_spec = None if mesh is None else _token_places(mesh, x.shape, expert_axes)
    form = implementation or form_of("expert_parallel")
    is_bounded = bool(expert_axes) and buffer is not None and form == "ragged"
    if token_spec is None:
        mesh, expert_axes = None, ()
        return local(x, experts, weights, kernels.arrays)
    y, overflowed = jax.shard_map(
        local,
        in_specs=(token_spec, token_spec, token_spec, kernel_specs),
        out_specs=(token_spec, PartitionSpec() if is_bounded else None),
        # Custom gradients do not declare the axes over which they vary
        check_vma=False,
    )(x, experts, weights, kernels.arrays)
    return constrain(y, TOKENS), overflowed


def _token_places(mesh, shape, expert_axes):
    """Return the PartitionSpec of tokens [b t d] in an exchange along `expert_axes`.

    Each device along `expert_axes` has different tokens, as far as rows or tokens split over these
    axes. None if they do not even split over the axes of a batch.
    """
    row_axes, seq_axes, _ = partition_spec(TOKENS)
    row_axes, seq_axes = split_over(mesh, row_axes), split_over(mesh, seq_axes)
    # In a rollout, experts are also split over axes that do not split the batch
    more_axes = tuple(axis for axis in expert_axes if axis not in row_axes + seq_axes)
    for spec in (
        (row_axes + more_axes, seq_axes, None),
        (row_axes, seq_axes + more_axes, None),
        (row_axes, seq_axes, None),
    ):
        if all(
            size % axis_parts(mesh, entry) == 0 for size, entry in zip(shape, spec, strict=True)
        ):
            return PartitionSpec(*(entry or None for entry in spec))
    return None


def _padded(expert_axes, experts, x_md, experts_ma, weights_ma, kernels):
    """Run this device's experts on the tokens of all devices along `expert_axes`."""
    shards, local_experts = jax.lax.axis_size(expert_axes), len(kernels[0])
    # The worst case: every token chooses as many experts of one device as it can
    capacity = len(x_md) * min(experts_ma.shape[1], local_experts)
    layout = capacity_layout(experts_ma // local_experts, shards, capacity)
    # Each row's expert, by its number on the receiver; `local_experts` (no expert) in rows without a token
    expert_r = jnp.full(shards * capacity, local_experts, jnp.int32)
    expert_r = expert_r.at[layout.row_of_choice].set(experts_ma % local_experts)

    received_rd = _to_peers(expert_axes, rows_by_expert(x_md, layout))
    received_r1 = _to_peers(expert_axes, expert_r)[:, None]
    weight_r1 = _to_peers(expert_axes, weight_of_rows(weights_ma, layout))[:, None]
    done_rd = experts.of_tokens(received_rd, received_r1, weight_r1, kernels)
    return summed(_to_peers(expert_axes, done_rd), layout), None


def _to_peers(expert_axes, rows):
    """Send row block i of every device to device i along `expert_axes`; its own inverse."""
    return jax.lax.all_to_all(rows, expert_axes, split_axis=0, concat_axis=0, tiled=True)


def _whole_columns(mesh, matrix, axes, dtype):
    """Return a device's share of a matrix, gathered over "embed", with three axes.

    Gate and up become one axis before they are gathered: a TPU copies an array to join two axes,
    and the share is smaller.
    """
    dim = axes.index("embed")
    matrix = matrix.reshape(*matrix.shape[:2], -1)
    return gathered(mesh, matrix, partition_spec(axes)[dim], dim, dtype)
