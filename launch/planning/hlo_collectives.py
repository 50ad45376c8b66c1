"""What one collective of a compiled program moves, and along which axes of the mesh."""

import dataclasses
import math
import re

import numpy as np

from launch.planning.hlo_text import Computation, Operation

# Groups of devices, in XLA's three notations: listed; counted, split and transposed; the axes of a mesh
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
    """Collectives of one kind along the same axes, of one device.

    count: how often they run; asynchronous: how many of these overlap with other work, by the program's text.
    bytes: of whole arrays: gathered, or before they are reduced, scattered or exchanged. wire_bytes: what the
    device sends where a ring does it; hidden_bytes: those of the asynchronous among them.
    """

    count: int = 0
    asynchronous: int = 0
    bytes: float = 0.0
    wire_bytes: float = 0.0
    hidden_bytes: float = 0.0

    def add(self, other, times):
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
    """((kind, axes), Collective) of a collective operation or its start; None for all else, and for groups of
    one device.

    mesh_shape: {axis: size} in the order of the devices. axes: those along which a group's devices differ.
    scatters: whether of a reduction's result only the device's part is kept. asynchronous: whether what holds
    the operation overlaps with other work.
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
    size = _whole_bytes(kind, computation, operation, devices)
    share = 1 if kind == "collective-permute" else (devices - 1) / devices
    wire = (2 if kind == "all-reduce" else 1) * share * size
    overlaps = asynchronous or operation.kind.endswith("-start")
    return (kind, axes), Collective(1, int(overlaps), size, wire, wire if overlaps else 0.0)


def continues(body: Computation, operation: Operation):
    """Whether an operation of a fusion carries on a collective that an earlier fusion started.

    A TPU runs a collective beside several fusions. Each of them repeats the operation, with the number of its
    chain; in the first "AsyncCollectiveStart" uses it, and "AsyncCollectiveDone" is the end of the last.
    """
    if operation.attribute(r'(chain_id)="'):
        users = body.users[operation.name]
        return not any(user.attribute(r'="(AsyncCollectiveStart)"') for user in users)
    return bool(operation.attribute(r'="(AsyncCollectiveDone)"'))


def _whole_bytes(kind, computation, operation, devices):
    given = [array.bytes for array in computation.arrays(operation.operands)]
    if kind == "all-gather":
        return devices * sum(given)
    if kind == "ragged-all-to-all":
        # Rows, and a buffer for rows: one of the two has room to spare
        return min(given[:2])
    return sum(given)


def _axes(groups, mesh_shape):
    sizes = list(mesh_shape.values())
    differ = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.array(np.unravel_index(group, sizes))
        differ |= (places != places[:, :1]).any(1)
    return tuple(axis for axis, differs in zip(mesh_shape, differ, strict=True) if differs)


def _groups(attributes, devices):
    """The numbers of the devices that exchange with each other, group by group; a permutation's pairs."""
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


def _iota(shape, transposed):
    """int[devices]: counted in a shape, then read with its dimensions transposed; both as "2,4"."""
    shape = _numbers(shape)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose(_numbers(transposed) if transposed else range(len(shape))).reshape(-1)


def _along(chosen, mesh, ids):
    """int[groups, devices of one] of a mesh's notation.

    mesh: "'axis_0'=2,'axis_1'=4". chosen: some of these axes, or parts of them: 'axis_1':(2)2 has the size 2
    and 2 blocks of it are outside it.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    parts = {name: (1, size, 1) for name, size in sizes.items()}
    for name, before, size in re.findall(r"'(\w+)':\((\d+)\)(\d+)", chosen):
        before, size = int(before), int(size)
        parts[name] = (before, size, sizes[name] // before // size)
    # Every axis as (outside, its chosen part, inside)
    ids = ids.reshape([size for triple in parts.values() for size in triple])
    names = list(parts)
    inner = [3 * names.index(name) + 1 for name in re.findall(r"'(\w+)'", chosen)]
    outer = [dim for dim in range(ids.ndim) if dim not in inner]
    group = math.prod(ids.shape[dim] for dim in inner)
    return ids.transpose(outer + inner).reshape(-1, group)
