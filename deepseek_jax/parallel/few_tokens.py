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


class Split(NamedTuple):
    """Matrices, and the logical axes of each, by which they are split over devices."""

    arrays: tuple
    axes: tuple

    def places(self, mesh):
        """The PartitionSpec of each matrix."""
        pairs = zip(self.arrays, self.axes, strict=True)
        return tuple(placed(mesh, array.shape, axes) for array, axes in pairs)


def has_few_tokens(x):
    """Whether x is the rows [b d] of a token step on a mesh that gives each device as many of them."""
    mesh = current_mesh()
    return x.ndim == 2 and mesh is not None and len(x) % mesh.size == 0


def over_widths(mlp, x, kernels: Split):
    """mlp(x, *kernels.arrays) of rows x [b ... d], of which each device computes a share of the width.

    mlp is linear in the matrices' split "mlp" axis, so that partial results add up.
    """
    mesh = current_mesh()
    if mesh is None:
        return mlp(x, *kernels.arrays)
    rows, places = placed(mesh, x.shape, ("batch",)), kernels.places(mesh)
    over = _width_axes(mesh, kernels, places)

    def local(x, matrices):
        y = mlp(x, *matrices)
        return jax.lax.psum(y, over) if over else y

    return jax.shard_map(local, in_specs=(rows, places), out_specs=rows, check_vma=False)(
        x, kernels.arrays
    )


def over_heads(product, a_bhu, w_hud):
    """product(a, w) of heads' results [b h u] and their projection [h u d] -> [b d]: each device multiplies
    its own heads, and partial results are rounded before they are added. Left to the compiler, they would
    travel as float32.
    """
    mesh = current_mesh()
    if mesh is None:
        return product(a_bhu, w_hud)
    of_a = placed(mesh, a_bhu.shape, ("batch", "heads", None))
    of_w = placed(mesh, w_hud.shape, ("heads", None, None))
    over = split_over(mesh, of_w[0])

    def local(a, w):
        y = product(a, w)
        return jax.lax.psum(y, over) if over else y

    result = PartitionSpec(of_a[0])
    return jax.shard_map(local, in_specs=(of_a, of_w), out_specs=result, check_vma=False)(
        a_bhu, w_hud
    )


class Experts(NamedTuple):
    """The experts of a layer, for the rows of a token step.

    choose(x [m d], *router) -> (experts int32[m a], weights float32[m a]). router: arrays that every device
    has whole. run(routed.arrays, rows [r z x], rows_per_expert int32[e]) -> [r z x]: see round_trip.
    beside(x [m d], *shared.arrays) -> [m d]: the MLP of all tokens; shared: None without one. Both are linear
    in their matrices' split "mlp" axis.
    """

    choose: Callable
    router: tuple
    run: Callable
    routed: Split
    beside: Callable
    shared: Split | None


def few_tokens(experts: Experts, x_bd):
    """The sum of all tokens' experts, and their choices: x [b d] -> ([b d], int32[b a]). See has_few_tokens.

    The devices of a group have the same rows. Each sends its share of them to the experts and computes its
    share of the width of the MLP beside these, and one sum over the group adds all. Partial results are
    rounded to x's dtype before they are added, as those of every product that is split.
    """
    mesh = current_mesh()
    (batch,) = partition_spec(("batch",))
    batch = (batch,) if isinstance(batch, str) else batch or ()
    group = tuple(axis for axis in mesh.axis_names if axis not in batch and mesh.shape[axis] > 1)
    places = experts.routed.places(mesh)
    shared_places = () if experts.shared is None else experts.shared.places(mesh)
    over = split_over(mesh, places[0][0])
    # The axes over which a group's rows are shared out
    more = tuple(axis for axis in over if axis in group)
    # Devices along the other axes have a part of a width each, or else the same
    whole = set(group) - set(more) - set(_width_axes(mesh, experts.routed, places))

    def local(x_md, router, matrices, shared):
        m = len(x_md) // axis_parts(mesh, more)
        first = jax.lax.axis_index(more) * m if more else 0
        own_md = jax.lax.dynamic_slice_in_dim(x_md, first, m)
        experts_ma, weights_ma = experts.choose(own_md, *router)
        run = functools.partial(experts.run, matrices)
        y_md = round_trip(run, own_md, experts_ma, weights_ma, over, held=len(matrices[0]))
        y_md = jax.lax.dynamic_update_slice_in_dim(
            jnp.zeros_like(x_md), _once(y_md, whole), first, axis=0
        )
        if experts.shared is not None:
            split = _width_axes(mesh, experts.shared, shared_places)
            y_md += _once(experts.beside(x_md, *shared), set(group) - set(split))
        return (jax.lax.psum(y_md, group) if group else y_md), experts_ma

    rows = PartitionSpec(batch)
    return jax.shard_map(
        local,
        in_specs=(rows, PartitionSpec(), places, shared_places),
        out_specs=(rows, PartitionSpec((*batch, *more))),
        check_vma=False,
    )(x_bd, experts.router, experts.routed.arrays, experts.shared and experts.shared.arrays or ())


def _width_axes(mesh, kernels, places):
    """The mesh axes that split the width of the first matrix."""
    return split_over(mesh, places[0][kernels.axes[0].index("mlp")])


def _once(y, axes):
    """y on the first device along the axes, zeros on the others, so that a sum over them has it once."""
    return jnp.where(jax.lax.axis_index(tuple(axes)) == 0, y, 0) if axes else y
