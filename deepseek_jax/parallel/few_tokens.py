"""The feed-forward part of a token step: each device computes its share, and one sum adds all.

In training a device has thousands of rows. Here it has a few dozen choices of experts, so that fixed costs
count: operations, collectives, empty rows.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from deepseek_jax.parallel.gather import split_over
from deepseek_jax.parallel.round_trip import round_trip
from deepseek_jax.parallel.shard import axis_parts, current_mesh, partition_spec, placed

# Rows of a device up to which comparing choices with each other is faster than sorting them
FEW = 64


class Split(NamedTuple):
    """Matrices that devices have parts of. axes: the logical axes of each. contracted: the logical axis along
    which results of parts add up, the last matrix's input.
    """

    arrays: tuple
    axes: tuple
    contracted: str = "mlp"

    def places(self, mesh):
        """The PartitionSpec of each matrix. The contracted axis is split as in the last one: of a gated MLP's
        joined halves, twice as wide, more devices could have a part.
        """
        pairs = zip(self.arrays, self.axes, strict=True)
        places = [placed(mesh, array.shape, axes) for array, axes in pairs]
        part = places[-1][self.axes[-1].index(self.contracted)]
        return tuple(
            PartitionSpec(
                *(
                    part if name == self.contracted else entry
                    for name, entry in zip(axes, place, strict=True)
                )
            )
            for axes, place in zip(self.axes, places, strict=True)
        )

    def parts(self, mesh):
        """The mesh axes along which devices have different parts of the contracted axis."""
        return split_over(mesh, self.places(mesh)[-1][self.axes[-1].index(self.contracted)])


def added_up(function, x, x_axes: tuple, matrices: Split):
    """function(x, *matrices.arrays) of rows x [b ...]: each device computes with its parts of the matrices,
    and what they give is rounded to x's dtype and added. Left to the compiler, partial results of a product
    may travel as float32. x_axes: the logical axes of x; the result has those of its rows.
    """
    mesh = current_mesh()
    if mesh is None:
        return function(x, *matrices.arrays)
    of_x, over = placed(mesh, x.shape, x_axes), matrices.parts(mesh)

    def local(x, arrays):
        y = function(x, *arrays)
        return jax.lax.psum(y, over) if over else y

    return jax.shard_map(
        local,
        in_specs=(of_x, matrices.places(mesh)),
        out_specs=PartitionSpec(of_x[0]),
        check_vma=False,
    )(x, matrices.arrays)


def rows_split(x):
    """Whether the rows of x [b ...] split over the devices that split a batch."""
    mesh = current_mesh()
    return mesh is None or len(x) % axis_parts(mesh, partition_spec(("batch",))[0]) == 0


def has_few_tokens(x):
    """Whether x is the rows [b d] of a token step, on a mesh whose devices get few of them each, and equally
    many.
    """
    mesh = current_mesh()
    if x.ndim != 2 or mesh is None:
        return False
    return len(x) % mesh.size == 0 and len(x) <= FEW * mesh.size


class Experts(NamedTuple):
    """The experts of a layer, for the rows of a token step.

    choose(x [m d], *router) -> (experts int32[m a], weights float32[m a]). router: arrays that every device
    has whole. run(routed.arrays, rows [r z x], rows_per_expert int32[e]) -> [r z x]: see round_trip.
    beside(x [m d], *shared.arrays) -> [m d]: the MLP of all tokens; shared: None without one. Both are linear
    in their matrices' contracted axis.
    """

    choose: Callable
    router: tuple
    run: Callable
    routed: Split
    beside: Callable
    shared: Split | None


def few_tokens(experts: Experts, x_bd):
    """The sum of all tokens' experts, their choices, and the rounds of each device's exchange: x [b d] ->
    ([b d], int32[b a], int32[devices]). See has_few_tokens.

    The devices of a group have the same rows. Each sends its share of them to the experts and computes with
    its part of the MLP beside these, and one sum over the group adds all. Partial results are rounded to x's
    dtype before they are added, as in added_up.
    """
    mesh = current_mesh()
    (batch,) = partition_spec(("batch",))
    batch = (batch,) if isinstance(batch, str) else batch or ()
    group = tuple(axis for axis in mesh.axis_names if axis not in batch and mesh.shape[axis] > 1)
    places = experts.routed.places(mesh)
    expert_axes = split_over(mesh, places[0][0])
    row_axes = tuple(axis for axis in expert_axes if axis in group)

    def others(*known):
        """The group's axes along which devices compute the same."""
        return tuple(axis for axis in group if not any(axis in axes for axes in known))

    def local(x_md, router, matrices, shared):
        m = len(x_md) // axis_parts(mesh, row_axes)
        first = jax.lax.axis_index(row_axes) * m if row_axes else 0
        own_md = jax.lax.dynamic_slice_in_dim(x_md, first, m)
        experts_ma, weights_ma = experts.choose(own_md, *router)
        run = functools.partial(experts.run, matrices)
        arrays = own_md, experts_ma, weights_ma
        y_md, rounds = round_trip(run, *arrays, expert_axes, len(matrices[0]))
        y_md = _once(y_md, others(row_axes, experts.routed.parts(mesh)))
        y_md = jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(x_md), y_md, first, axis=0)
        if experts.shared is not None:
            y_md += _once(experts.beside(x_md, *shared), others(experts.shared.parts(mesh)))
        return (jax.lax.psum(y_md, group) if group else y_md), experts_ma, rounds[None]

    shared, shared_places = (), ()
    if experts.shared is not None:
        shared, shared_places = experts.shared.arrays, experts.shared.places(mesh)
    rows = PartitionSpec(batch)
    return jax.shard_map(
        local,
        in_specs=(rows, PartitionSpec(), places, shared_places),
        out_specs=(rows, PartitionSpec((*batch, *row_axes)), partition_spec(("slots",))),
        check_vma=False,
    )(x_bd, experts.router, experts.routed.arrays, shared)


def _once(y, axes):
    """y on the first device along the axes, zeros on the others, so that a sum over them has it once."""
    return jnp.where(jax.lax.axis_index(axes) == 0, y, 0) if axes else y
