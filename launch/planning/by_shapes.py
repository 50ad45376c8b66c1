"""The results of a program that is not compiled, for a plan of what they lie beside: their shapes, and a
guess of their places, which in our tests takes at least the bytes of the compiler's choice.
"""

import functools

import jax
from jax.extend.core import Literal
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.costs.program import Program
from deepseek_jax.parallel.shard import axis_parts


def results_by_shapes(program: Program, arguments: tuple):
    """The results of function(*arguments) as ShapeDtypeStructs with shardings.

    A result that the program pins is where it is pinned. Any other counts as whole but for its first axis,
    which is split by what splits the first axis of all pinned arrays: of a prefill, the rows of its batch.
    """
    with jax.set_mesh(program.mesh), jax.default_device(program.mesh.devices.flat[0]):
        traced = program.function.trace(*arguments)
    leaves, tree = jax.tree.flatten(traced.out_info)
    jaxpr = traced.jaxpr.jaxpr
    pinned = _pinned(jaxpr)
    rows = _split_by_all(program.mesh, pinned.values())
    # What a device computes of its own shares lies where it says
    pinned |= {
        variable: spec
        for equation in jaxpr.eqns
        if equation.primitive.name == "shard_map"
        for variable, spec in zip(equation.outvars, equation.params["out_specs"], strict=True)
    }
    placed = []
    for variable, leaf in zip(jaxpr.outvars, leaves, strict=True):
        # A literal is not hashable
        is_pinned = not isinstance(variable, Literal) and variable in pinned
        spec = pinned[variable] if is_pinned else _first_axis(program.mesh, leaf.shape, rows)
        place = NamedSharding(program.mesh, spec)
        placed.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place))
    return jax.tree.unflatten(tree, placed)


def _pinned(jaxpr):
    """{variable: the PartitionSpec that a program pins it to}."""
    return {
        equation.outvars[0]: equation.params["sharding"].spec
        for equation in jaxpr.eqns
        if equation.primitive.name == "sharding_constraint"
    }


def _split_by_all(mesh, specs):
    """The mesh axes, larger than 1, that split the first axis by every one of the specs that splits any."""
    # Too few rows for all devices are pinned whole, and say nothing of others
    firsts = [_axes(spec[0]) for spec in specs if any(spec)]
    if not firsts:
        return ()
    shared = functools.reduce(set.intersection, map(set, firsts))
    return tuple(axis for axis in firsts[0] if axis in shared and mesh.shape[axis] > 1)


def _first_axis(mesh, shape, axes):
    splits = shape and shape[0] % axis_parts(mesh, axes) == 0
    return PartitionSpec(axes) if splits else PartitionSpec()


def _axes(entry):
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
