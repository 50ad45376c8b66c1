"""The feed-forward part of a token step: each device computes its share, and one sum adds all.

In training a device has thousands of rows. Here it has a few dozen choices of experts, so that
fixed costs count: operations, collectives, empty rows.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from deepseek_jax.parallel.gather import split_over
from deepseek_jax.parallel.round_trip import round_trip
from deepseek_jax.parallel.shard import axis_parts, current_mesh, partition_spec, placed

# Up to this many rows on a device, comparing choices with each other is faster than sorting them
FEW = 64


class Split(NamedTuple):
    """Matrices that each device has a part of.

    Attributes:
        arrays: The matrices.
        axes: The logical axes of each matrix.
        contracted: The logical axis along which results of parts add up, an input of the last
            matrix.
    """

    arrays: tuple[jax.Array, ...]
    axes: tuple[tuple[str | None, ...], ...]
    contracted: str = "mlp"

    def places(self, mesh: Mesh | AbstractMesh) -> tuple[PartitionSpec, ...]:
        """Return the PartitionSpec of each matrix.

        The contracted axis is split as in the last matrix. A gated MLP's joined halves are twice as
        wide, so more devices could have a part of them than of the last matrix.
        """
        pairs = zip(self.arrays, self.axes, strict=True)
        specs = [placed(mesh, array.shape, axes) for array, axes in pairs]
        contracted_entry = specs[-1][self.axes[-1].index(self.contracted)]
        return tuple(
            PartitionSpec(
                *(
                    contracted_entry if name == self.contracted else entry
                    for name, entry in zip(axes, spec, strict=True)
                )
            )
            for axes, spec in zip(self.axes, specs, strict=True)
        )

    def split_axes(self, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
        """Return the mesh axes along which devices have different parts of the contracted axis."""
        return split_over(mesh, self.places(mesh)[-1][self.axes[-1].index(self.contracted)])


def added_up(
    function: Callable, x: jax.Array, x_axes: tuple[str | None, ...], matrices: Split
) -> jax.Array:
    """Call function(x, *matrices.arrays) on rows x, each device with its parts of the matrices.

    Partial results are rounded to x's dtype and added. Without this, the compiler may send partial
    results of a product as float32.

    Args:
        function: Linear in the matrices' contracted axis.
        x: [b ...].
        x_axes: The logical axes of x. The result has the axes of x's rows.
        matrices: A Split.
    """
    mesh = current_mesh()
    if mesh is None:
        return function(x, *matrices.arrays)
    x_spec, sum_axes = placed(mesh, x.shape, x_axes), matrices.split_axes(mesh)

    def local(x, arrays):
        y = function(x, *arrays)
        return jax.lax.psum(y, sum_axes) if sum_axes else y

    return jax.shard_map(
        local,
        in_specs=(x_spec, matrices.places(mesh)),
        out_specs=PartitionSpec(x_spec[0]),
        check_vma=False,
    )(x, matrices.arrays)


def rows_split(x: jax.Array) -> bool:
    """Return True if the rows of x [b ...] split over the devices that split a batch."""
    mesh = current_mesh()
    return mesh is None or len(x) % axis_parts(mesh, partition_spec(("batch",))[0]) == 0


def has_few_tokens(x: jax.Array) -> bool:
    """Return True if x is the rows [b d] of a token step that gives each device few rows.

    It is False without a mesh, and if some devices would get more rows than others.
    """
    mesh = current_mesh()
    if x.ndim != 2 or mesh is None:
        return False
    return len(x) % mesh.size == 0 and len(x) <= FEW * mesh.size


class Experts(NamedTuple):
    """A layer's experts, for the rows of a token step.

    Attributes:
        choose: A function (x [m d], *router) -> (experts int32[m a], weights float32[m a]).
        router: Arrays that every device has whole.
        run: A function (routed.arrays, rows [r z x], rows_per_expert int32[e]) -> [r z x], see
            round_trip. It is linear in the matrices' contracted axis.
        routed: The routed experts' matrices.
        beside: A function (x [m d], *shared.arrays) -> [m d], the shared MLP of all tokens. It is
            linear in the matrices' contracted axis.
        shared: The shared MLP's matrices; None without one.
    """

    choose: Callable
    router: tuple[jax.Array | None, ...]
    run: Callable
    routed: Split
    beside: Callable
    shared: Split | None


def few_tokens(experts: Experts, x_bd: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Run the experts and the shared MLP of a token step, see has_few_tokens.

    The devices of a group have the same rows. Each device sends its share of them to the experts
    and computes with its part of the shared MLP, and one sum over the group adds all. Partial
    results are rounded to x's dtype before they are added, as in added_up.

    Args:
        experts: The layer's experts.
        x_bd: [b d].

    Returns:
        The sum [b d]; the experts of each token, int32[b a]; and the rounds of each device's
        exchange, int32[devices].
    """
    mesh = current_mesh()
    assert mesh is not None, "see has_few_tokens"
    (batch_axes,) = partition_spec(("batch",))
    batch_axes = (batch_axes,) if isinstance(batch_axes, str) else batch_axes or ()
    group_axes = tuple(
        axis for axis in mesh.axis_names if axis not in batch_axes and mesh.shape[axis] > 1
    )
    expert_specs = experts.routed.places(mesh)
    expert_axes = split_over(mesh, expert_specs[0][0])
    row_axes = tuple(axis for axis in expert_axes if axis in group_axes)

    def same_axes(*split_axes):
        """Return the group's axes along which devices compute the same."""
        return tuple(axis for axis in group_axes if not any(axis in axes for axes in split_axes))

    def local(x_md, router, matrices, shared_arrays):
        m = len(x_md) // axis_parts(mesh, row_axes)
        first_row = jax.lax.axis_index(row_axes) * m if row_axes else 0
        own_md = jax.lax.dynamic_slice_in_dim(x_md, first_row, m)
        experts_ma, weights_ma = experts.choose(own_md, *router)
        run = functools.partial(experts.run, matrices)
        arrays = own_md, experts_ma, weights_ma
        y_md, rounds = round_trip(run, *arrays, expert_axes, len(matrices[0]))
        y_md = _once(y_md, same_axes(row_axes, experts.routed.split_axes(mesh)))
        y_md = jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(x_md), y_md, first_row, axis=0)
        if experts.shared is not None:
            y_md += _once(
                experts.beside(x_md, *shared_arrays), same_axes(experts.shared.split_axes(mesh))
            )
        return (jax.lax.psum(y_md, group_axes) if group_axes else y_md), experts_ma, rounds[None]

    shared_arrays: tuple[jax.Array, ...] = ()
    shared_specs: tuple[PartitionSpec, ...] = ()
    if experts.shared is not None:
        shared_arrays, shared_specs = experts.shared.arrays, experts.shared.places(mesh)
    row_spec = PartitionSpec(batch_axes)
    return jax.shard_map(
        local,
        in_specs=(row_spec, PartitionSpec(), expert_specs, shared_specs),
        out_specs=(row_spec, PartitionSpec((*batch_axes, *row_axes)), partition_spec(("slots",))),
        check_vma=False,
    )(x_bd, experts.router, experts.routed.arrays, shared_arrays)


def _once(y, axes):
    """Return y on the first device along the axes and zeros on the others: their sum has y once."""
    return jnp.where(jax.lax.axis_index(axes) == 0, y, 0) if axes else y
