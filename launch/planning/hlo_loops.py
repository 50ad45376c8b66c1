"""How often the loops of a compiled program run.

Tests: tests/launch/planning/test_hlo.py.
"""

from launch.planning.hlo_text import VIEWS, Operation


def endless_loops(computations, computation):
    """Return the names of the bodies of a computation's loops that have no known count."""
    loops = [operation for operation in computation.values() if operation.kind == "while"]
    unknown_loops = [loop for loop in loops if trip_count(computations, computation, loop) is None]
    return [loop.attribute(r"body=%?([\w.\-]+)") for loop in unknown_loops]


def trip_count(computations, computation, loop: Operation):
    """Return how often the body of a while loop runs; None if nobody knows.

    This is XLA's count, if the text gives one. Otherwise it is the constant with which the
    condition compares a counter, minus the counter's first value if that is a constant.
    """
    known_count = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known_count:
        return int(known_count)
    condition = computations[loop.attribute(r"condition=%?([\w.\-]+)")]
    for counter, limit in _comparisons(computations, condition, {}):
        # A comparison with 0 is about an index, which counts from the end below 0: it limits no
        # loop
        if limit is not None and limit > 0:
            return limit - _start(computation, condition, loop, counter)
    return None


def _comparisons(computations, body, constants):
    """Yield (a counter's name, its limit) for each "<" in a condition; None for what is not known.

    Args:
        constants: {parameter: constant}.
    """
    for operation in body.values():
        if operation.kind == "fusion":
            inner = computations[operation.called()]
            values = [_constant(body, name, constants) for name in operation.operands]
            inner_constants = {inner.parameters[i]: value for i, value in enumerate(values)}
            for counter, limit in _comparisons(computations, inner, inner_constants):
                yield _outside(operation, inner, counter), limit
        if operation.kind == "compare" and operation.attribute(r"direction=(LT)"):
            lhs, rhs = operation.operands
            yield lhs, _constant(body, rhs, constants)


def _outside(fusion, inner, name):
    """Return the operand of a fusion that is this parameter of its body; None for no parameter."""
    is_parameter = name is not None and inner[name].kind == "parameter"
    return fusion.operands[int(inner[name].inside)] if is_parameter else None


def _constant(body, name, constants=None):
    operation = body[name]
    while operation.kind in VIEWS:
        operation = body[operation.operands[0]]
    if operation.kind == "constant" and operation.result[0].dtype in ("s32", "s64", "u32", "u64"):
        return int(operation.inside) if not operation.result[0].shape else None
    return (constants or {}).get(operation.name)


def _start(computation, condition, loop, counter):
    """Return a loop's counter before the first turn; 0 if the program's text does not show it."""
    carry = computation[loop.operands[0]]
    if counter is None or carry.kind != "tuple":
        return 0
    index = condition[counter].attribute(r"index=(\d+)")
    return 0 if index is None else _constant(computation, carry.operands[int(index)]) or 0
