"""Bytes that a compiled program's collectives move, and the mesh axes that they use.

Tests: tests/launch/planning/test_hlo.py.
"""

import dataclasses
import math
import re

import numpy as np

from launch.planning.hlo_text import Computation, Operation

# XLA's three notations for groups of devices: a list; a count that is split and transposed; axes of
# a mesh
LISTED = re.compile(r"(replica_groups|source_target_pairs)=(\{[\d,{}]*\})")
COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)


@dataclasses.dataclass
class Collective:
    """Collectives of one kind along the same axes, for one device.

    Attributes:
        count: How often they run.
        asynchronous: How many of these overlap with other work, by the program's text.
        bytes: Bytes of whole arrays: after a gather, or before a reduction, scatter or exchange.
        wire_bytes: Bytes that the device sends if the collective goes around a ring.
        hidden_bytes: The part of wire_bytes that asynchronous collectives send.
    """

    count: int = 0
    asynchronous: int = 0
    bytes: float = 0.0
    wire_bytes: float = 0.0
    hidden_bytes: float = 0.0

    def add(self, other, times):
        """Add another Collective `times` times."""
        self.count += times * other.count
        self.asynchronous += times * other.asynchronous
        self.bytes += times * other.bytes
        self.wire_bytes += times * other.wire_bytes
        self.hidden_bytes += times * other.hidden_bytes


def collective_of(
    computation: Computation,
    operation: Operation,
    mesh_shape: dict,
    *,
    scatters: bool,
    asynchronous: bool,
):
    """Return what an operation moves, if it is a collective or the start of one.

    Args:
        mesh_shape: {axis: size} in the order of the devices.
        scatters: True if the device only uses its part of a reduction's result.
        asynchronous: True if the operation is in something that overlaps with other work.

    Returns:
        ((kind, axes), Collective). A group's devices differ along these axes. None for all other
        operations, and for groups of one device.
    """
    kind = operation.kind.removesuffix("-start")
    if kind not in KINDS:
        return None
    kind = "reduce-scatter" if scatters and kind == "all-reduce" else kind
    groups = _groups(operation.attributes, math.prod(mesh_shape.values()))
    axes = _axes(groups, mesh_shape)
    if not axes:
        return None
    devices = len(groups[0])
    whole_bytes = _whole_bytes(kind, computation, operation, devices)
    share = 1 if kind == "collective-permute" else (devices - 1) / devices
    wire_bytes = (2 if kind == "all-reduce" else 1) * share * whole_bytes
    overlaps = asynchronous or operation.kind.endswith("-start")
    return (kind, axes), Collective(
        1, int(overlaps), whole_bytes, wire_bytes, wire_bytes if overlaps else 0.0
    )


def continues(body: Computation, operation: Operation):
    """Return whether an operation in a fusion continues a collective of an earlier fusion.

    A TPU runs a collective at the same time as several fusions. Each of them repeats the operation,
    with the number of its chain. In the first one "AsyncCollectiveStart" uses it, and
    "AsyncCollectiveDone" is the end of the last one.
    """
    if operation.attribute(r'(chain_id)="'):
        users = body.users[operation.name]
        return not any(user.attribute(r'="(AsyncCollectiveStart)"') for user in users)
    return bool(operation.attribute(r'="(AsyncCollectiveDone)"'))


def _whole_bytes(kind, computation, operation, devices):
    operand_bytes = [array.bytes for array in computation.arrays(operation.operands)]
    if kind == "all-gather":
        return devices * sum(operand_bytes)
    if kind == "ragged-all-to-all":
        # The operands are rows, and a buffer for rows. One of the two has room to spare
        return min(operand_bytes[:2])
    return sum(operand_bytes)


def _axes(groups, mesh_shape):
    axis_sizes = list(mesh_shape.values())
    axis_differs = np.zeros(len(axis_sizes), bool)
    for group in groups:
        coordinates = np.array(np.unravel_index(group, axis_sizes))
        axis_differs |= (coordinates != coordinates[:, :1]).any(1)
    return tuple(axis for axis, differs in zip(mesh_shape, axis_differs, strict=True) if differs)


def _groups(attributes, devices):
    """Return the numbers of the devices in each group; for a permutation, its pairs."""
    if match := LISTED.search(attributes):
        groups = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", match[2])]
        return groups or ([list(range(devices))] if match[1] == "replica_groups" else [])
    if match := COUNTED.search(attributes):
        shape = _numbers(match[1])
        return _iota(match[2], match[3]).reshape(-1, shape[-1]).tolist()
    if match := MESH.search(attributes):
        return _along(match[4], match[1], _iota(match[2] or str(devices), match[3])).tolist()
    raise ValueError(f"a collective's groups are in no known notation: {attributes[:200]}")


def _numbers(text):
    return [int(number) for number in text.split(",")]


def _iota(shape, order):
    """Return int[devices]: numbers counted in a shape, then read with its dimensions transposed.

    Args:
        shape: A text such as "2,4".
        order: The order of the dimensions, a text too; None for no change.
    """
    shape = _numbers(shape)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose(_numbers(order) if order else range(len(shape))).reshape(-1)


def _along(chosen_axes, mesh_text, ids):
    """Return int[groups, devices of a group] for the notation by a mesh.

    Args:
        chosen_axes: Some of the mesh's axes, or parts of them: 'axis_1':(2)2 is a part of size 2,
            and 2 blocks of it are outside the group.
        mesh_text: "'axis_0'=2,'axis_1'=4".
        ids: int[devices], in the order of the mesh.
    """
    axis_sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh_text)}
    axis_splits = {name: (1, size, 1) for name, size in axis_sizes.items()}
    for name, num_blocks, size in re.findall(r"'(\w+)':\((\d+)\)(\d+)", chosen_axes):
        num_blocks, size = int(num_blocks), int(size)
        axis_splits[name] = (num_blocks, size, axis_sizes[name] // num_blocks // size)
    # Every axis becomes three: outside, its chosen part, inside
    ids = ids.reshape([size for split in axis_splits.values() for size in split])
    names = list(axis_splits)
    inner_dims = [3 * names.index(name) + 1 for name in re.findall(r"'(\w+)'", chosen_axes)]
    outer_dims = [dim for dim in range(ids.ndim) if dim not in inner_dims]
    group_size = math.prod(ids.shape[dim] for dim in inner_dims)
    return ids.transpose(outer_dims + inner_dims).reshape(-1, group_size)
