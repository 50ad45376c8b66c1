"""The results of a program that is not compiled: their shapes, and a guess of their shardings.

A plan uses them for programs that run while these results are in memory. In our tests the guess
takes at least the bytes of the compiler's choice.
"""

import functools

import jax
from jax.extend.core import Literal
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.costs.program import Program
from deepseek_jax.parallel.shard import axis_parts


def results_by_shapes(program: Program, arguments: tuple):
    """Return the results of function(*arguments) as ShapeDtypeStructs with shardings.

    A result that the program pins has the sharding that it is pinned to. Any other result counts as
    whole except for its first axis. That axis is split by the mesh axes that split the first axis
    of all pinned arrays: in a prefill, the rows of its batch.
    """
    with jax.set_mesh(program.mesh), jax.default_device(program.mesh.devices.flat[0]):
        # The annotation of Program.function does not say that it is jitted
        traced = program.function.trace(*arguments)  # type: ignore[attr-defined]
    leaves, tree = jax.tree.flatten(traced.out_info)
    jaxpr = traced.jaxpr.jaxpr
    pinned = _pinned(jaxpr)
    rows = _split_by_all(program.mesh, pinned.values())
    # The results of a shard_map have the shardings of its out_specs
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
    """Return {variable: the PartitionSpec that a program pins it to}."""
    return {
        equation.outvars[0]: equation.params["sharding"].spec
        for equation in jaxpr.eqns
        if equation.primitive.name == "sharding_constraint"
    }


def _split_by_all(mesh, specs):
    """Return the mesh axes that split the first axis in every spec.

    Specs that split nothing do not count, and axes of size 1 are left out.
    """
    # An array with too few rows for all devices is pinned whole, and says nothing about others
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
