"""The matrix products that a program carries out, counted from its jaxpr: an oracle of costs.flops."""

import math

from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr


def matmul_flops(jaxpr):
    """Multiplications and additions of every matrix product in a jaxpr, over all devices: int.

    jaxpr: of `jax.make_jaxpr(f)(...)` or `jitted.trace(...).jaxpr`. The body of a scan counts as often as it
    runs. The most expensive branch of a cond counts. The body of a shard_map is one device's: it counts once
    for each device along its manual axes. A ragged product counts each row once, filled or not, as a grouped
    kernel computes it. A Pallas kernel counts by its cost_estimate. What remat computes again counts
    again; unused results do not count. Raises ValueError for products in a loop of unknown length, and in a
    kernel without an estimate.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    # Without what no result needs: the compiler drops that too
    return _of_program(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _of_program(jaxpr):
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_dot(equation, params["dimension_numbers"], groups=())
    if name == "ragged_dot_general":
        numbers = params["ragged_dot_dimension_numbers"]
        return _of_dot(equation, numbers.dot_dimension_numbers, numbers.rhs_group_dimensions)
    if name == "pallas_call" and params["cost_estimate"] is not None:
        return params["cost_estimate"].flops
    inside = [_of_program(body) for body in jaxprs_in_params(params)]
    if name == "cond":
        return max(inside)
    if name in ("while", "pallas_call") and any(inside):
        raise ValueError(
            f"the matrix products of a {name} cannot be counted: only its data say how often they run; use a "
            "scan, or give a kernel a cost_estimate"
        )
    return sum(inside) * _times(name, params)


def _of_dot(equation, dimension_numbers, groups):
    """2 m k n for each index of the batch dimensions."""
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    (_, contracted), (_, batch) = dimension_numbers
    # The left operand has the batch, m and k; n is the rest of the right one. Groups are left out: a row of a
    # ragged product meets the matrix of one group
    inner = {*contracted, *batch, *groups}
    return 2 * math.prod(left) * math.prod(n for i, n in enumerate(right) if i not in inner)


def _times(name, params):
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1
