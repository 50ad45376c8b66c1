"""The operations of a compiled program that do work, and the memory bytes that each one moves.

Tests: tests/launch/planning/test_hlo.py.
"""

import math

from launch.planning.hlo_collectives import continues
from launch.planning.hlo_text import VIEWS, Computation, Operation

# Kinds that only name arrays, or that leave the work to operations of other computations
FREE = (
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id "
    "replica-id opt-barrier add-dependency domain"
).split()
CUTS = ("slice", "dynamic-slice", "gather")
# {kind that writes a part of its first operand in place: position of the operand that it writes}
WRITES = {"dynamic-update-slice": 1, "scatter": 2}
CALLING_STARTS = ("async-start", "call-start")
# Endings of the kinds that run at the same time as others, such as copies of weights into vector
# memory
HALVES = ("-start", "-update", "-done")
# A fusion within a fusion that only changes the tiles of its operand, as libtpu 0.0.50 writes for tpu7x: it
# moves nothing by itself, so a slice of its result reads a part of its operand
RETILES = r"output_to_operand_aliasing=\{(\{\}): \(0, \{\}\)\}"
# These custom calls reserve memory or mark a time
FREE_TARGETS = r'custom_call_target="(AllocateBuffer|PrepareAsyncCall\w*)"'


def does_work(operation: Operation):
    """Return whether an operation outside fusions counts as one.

    A pair of start and end counts once, at its start. If the start calls a computation, the
    operations in that computation count instead.
    """
    if operation.kind in FREE or operation.attribute(FREE_TARGETS):
        return False
    return (
        not operation.kind.endswith(("-update", "-done")) and operation.kind not in CALLING_STARTS
    )


def operation_bytes(computations, computation: Computation, operation: Operation):
    """Return the HBM bytes of an operation outside fusions: its operands and its result.

    Padding of layouts does not count, and neither do arrays in other memories. If an array is cut,
    or updated in place, only the part counts. An asynchronous operation reads at its start and
    writes at its end. If it calls a computation, the bytes of that computation count instead.
    """
    kind, operands = operation.kind, computation.arrays(operation.operands)
    if kind in FREE or operation.attribute(FREE_TARGETS):
        return 0
    if kind == "fusion":
        return _fusion_bytes(computations, computation, operation)
    if kind.endswith("-update") or kind in ("async-done", "call-done"):
        return 0
    if kind.endswith("-done"):
        return hbm(operation.result)
    if kind.endswith("-start"):
        if operation.called() and kind in CALLING_STARTS:
            return 0
        if kind.removesuffix("-start") in CUTS:
            # The result of the start is a tuple: operands, the result, a semaphore
            return min(operation.result[len(operands)].bytes, operands[0].hbm_bytes)
        return hbm(operands)
    if kind in CUTS:
        part = operation.result[0]
        return min(part.bytes, operands[0].hbm_bytes) + hbm(operands[1:]) + part.hbm_bytes
    if kind in WRITES and len(operation.result) == 1:
        part = operands[WRITES[kind]]
        return hbm(operands[1:]) + min(part.bytes, operation.result[0].hbm_bytes)
    return hbm(operands) + hbm(operation.result)


def rows_addressed(computation: Computation, operation: Operation):
    """Return (bytes of a row, rows) that a gather or a scatter moves, or None."""
    if operation.kind == "gather":
        part = operation.result[0]
        sizes = operation.attribute(r"slice_sizes=\{([\d,]*)\}")
        row_size = math.prod(map(int, sizes.split(",")))
    elif operation.kind == "scatter":
        part = computation.arrays(operation.operands)[WRITES["scatter"]]
        dims = operation.attribute(r"update_window_dims=\{([\d,]*)\}")
        row_size = math.prod(part.shape[int(dim)] for dim in dims.split(",") if dim)
    else:
        return None
    size = math.prod(part.shape)
    return (part.bytes * row_size / size, size // row_size) if size else None


def hbm(arrays):
    """Return the bytes of these arrays in the device's memory."""
    return sum(array.hbm_bytes for array in arrays)


def _fusion_bytes(computations, computation, fusion):
    body = computations[fusion.called()]
    total = 0
    for position, name in enumerate(fusion.operands):
        whole = hbm(computation[name].result)
        total += whole and min(whole, _read(computations, body, body.parameters[position]))
    root = body.root
    outputs = [body[name] for name in root.operands] if root.kind == "tuple" else [root]
    first = 0
    for output in outputs:
        whole = hbm(fusion.result[first : first + len(output.result)])
        total += whole and min(whole, _written(computations, body, output))
        first += len(output.result)
    return total


def _read(computations, body, name):
    """Return the bytes that a fusion's body reads from one of its values."""
    whole = sum(array.bytes for array in body[name].result)
    total = whole if body[name].is_root else 0
    for user in body.users[name]:
        is_first = user.operands[0] == name and user.operands.count(name) == 1
        if user.kind in CUTS and is_first:
            total += user.result[0].bytes
        elif user.kind in WRITES and is_first or continues(body, user):
            continue
        elif user.kind == "tuple" and body[name].kind == "parameter":
            # The value is passed on as it is
            continue
        elif user.kind in VIEWS or user.attribute(RETILES):
            total += _read(computations, body, user.name)
        elif user.kind == "fusion":
            inner = computations[user.called()]
            for position, operand in enumerate(user.operands):
                if operand == name:
                    total += _read(computations, inner, inner.parameters[position])
        else:
            return whole
    return min(total, whole)


def _written(computations, body, output):
    """Return the bytes that a fusion's body writes to one of its results."""
    while output.kind == "bitcast":
        output = body[output.operands[0]]
    if output.kind == "parameter" or continues(body, output):
        return 0
    if output.attribute(r'="(AsyncCollectiveStart)"'):
        output = body[output.operands[0]]
    if output.kind == "fusion" and len(output.result) == 1:
        inner = computations[output.called()]
        return _written(computations, inner, inner.root)
    if output.kind in WRITES and len(output.result) == 1:
        target, part = body[output.operands[0]], body[output.operands[WRITES[output.kind]]]
        while target.kind in ("bitcast", "get-tuple-element") or target.attribute(RETILES):
            target = body[target.operands[0]]
        written = sum(array.bytes for array in part.result)
        if target.kind == "parameter":
            return written
        if target.kind in WRITES:
            return written + _written(computations, body, target)
    return sum(array.bytes for array in output.result)
