"""Which rows of a checkpoint's tensors a process reads: those that its devices hold, and no others.

Files hold rows one after the other, so a row is the least that is worth reading. Where the mesh splits the
columns of a tensor, it splits the rows instead while they are read, and the devices exchange their parts.
"""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.checkpoint.hf_names import tensors
from deepseek_jax.checkpoint.tree import abstract_params
from deepseek_jax.checkpoint.turn import Turn
from deepseek_jax.models import ModelConfig
from deepseek_jax.parallel.shard import axis_parts


class Piece(NamedTuple):
    """Rows of a stored tensor, int64[rows], and the Turn that makes them a block of a parameter."""

    name: str
    rows: np.ndarray
    turn: Turn


class Move(NamedTuple):
    """Mesh axes that split axis `column` of a parameter, and axis `row` while it is read.

    row is None where no axis of the rows splits over them: every device reads whole rows and cuts them.
    """

    column: int
    row: int | None
    mesh_axes: tuple[str, ...]


def by_parameter(config: ModelConfig):
    """{parameter path: {index: (tensor name, turn)}}: hf_names.tensors, looked up from the other side."""
    stored = {}
    for name, places in tensors(config).items():
        for path, index, turn in places:
            stored.setdefault(path, {})[index] = name, turn
    return stored


def while_read(leaf: jax.ShapeDtypeStruct, turn: Turn):
    """The NamedSharding of a parameter while it is read, and the Moves from there to its own.

    leaf: of abstract_params. Moves to the same row axis are undone from the last to the first.
    """
    mesh, moves = leaf.sharding.mesh, []
    spec = [_split_by(mesh, entry) for entry in leaf.sharding.spec]
    filled = [axis for axis, index in enumerate(turn.index) if index == ":"]
    # turn.order says which axis of the view each of these is, and the view begins with the rows
    rows = [axis for axis, of_view in zip(filled, turn.order, strict=True) if of_view < turn.row_axes]
    for column in filled:
        if column in rows or not spec[column]:
            continue
        splits = (
            row for row in rows if leaf.shape[row] % axis_parts(mesh, spec[row] + spec[column]) == 0
        )
        moves.append(Move(column, next(splits, None), spec[column]))
        if moves[-1].row is not None:
            spec[moves[-1].row] += spec[column]
        spec[column] = ()
    return NamedSharding(mesh, PartitionSpec(*(axes or None for axes in spec))), tuple(moves)


def steps(leaf: jax.ShapeDtypeStruct, stored: dict, devices):
    """The reading of a parameter for some devices of its mesh, in steps: yields (start, [(Piece, devices)]).

    stored: of by_parameter. In a step each device gets one tensor's part of its own block, at the same place
    `start` of it: layers and experts that lie on other devices are read at the same time. Devices with the
    same piece share it. Without a mesh, devices is (None,).
    """
    turn = next(iter(stored.values()))[1]
    blocks = _blocks(leaf, turn, devices)
    stacked = [index != ":" for index in turn.index]
    some = next(iter(blocks.values()))
    sizes = [last - first if many else 1 for many, (first, last) in zip(stacked, some, strict=True)]
    for start in np.ndindex(*sizes):
        sharers = {}
        for device, block in blocks.items():
            axes = list(zip(stacked, block, start, strict=True))
            index = tuple(first + at if many else None for many, (first, _), at in axes)
            ranges = tuple(ends for many, ends, _ in axes if not many)
            sharers.setdefault((index, ranges), []).append(device)
        yield start, [(_piece(stored[i], ranges), held) for (i, ranges), held in sharers.items()]


def share_bytes(config: ModelConfig, dtype, mesh: Mesh, process: int):
    """How many bytes of tensors and scales a process reads when load_hf places the config on the mesh.

    dtype: function from a tensor's name to its dtype as stored; one of one byte is FP8 with scales.
    """
    devices = [device for device in mesh.devices.flat if device.process_index == process]
    leaves, total = abstract_params(config, mesh=mesh), 0
    for path, stored in by_parameter(config).items():
        for _, pieces in steps(leaves[path], stored, devices):
            total += sum(_piece_bytes(piece, dtype(piece.name)) for piece, _ in pieces)
    return total


def _piece_bytes(piece, dtype):
    columns = math.prod(piece.turn.shape[1:])
    count = len(piece.rows) * columns * dtype.itemsize
    if dtype.itemsize == 1:
        # Scales are float32, one for 128 x 128
        count += 4 * len(np.unique(piece.rows // 128)) * -(-columns // 128)
    return count


def _blocks(leaf, turn, devices):
    """{device: ((start, stop) along each axis)}: the block of a parameter that each device reads."""
    if leaf.sharding is None:
        return {device: tuple((0, size) for size in leaf.shape) for device in devices}
    everywhere = while_read(leaf, turn)[0].devices_indices_map(leaf.shape)
    return {
        device: tuple(
            along.indices(size)[:2]
            for along, size in zip(everywhere[device], leaf.shape, strict=True)
        )
        for device in devices
    }


def _piece(tensor, ranges):
    name, turn = tensor
    return Piece(name, *_block(turn, ranges))


# Layers and experts repeat the same few blocks
@functools.cache
def _block(turn, ranges):
    return turn.block(ranges)


def _split_by(mesh, entry):
    """The mesh axes of an entry of a PartitionSpec that split anything, a tuple."""
    axes = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)
