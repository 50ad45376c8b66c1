"""The rows of a checkpoint's tensors that each process reads: its share of what its devices hold.

A file has a tensor's rows one after the other. The rows of a device are therefore a few long reads,
but its columns would be a short read in every row (224 bytes for DeepSeek-V3 on fsdp=32). So where
the mesh splits columns, its devices split the rows instead, and exchange them once they are read
(fill.py).
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.checkpoint.turn import Place, Turn
from deepseek_jax.parallel.shard import axis_parts

# The stored tensors of a parameter: {index in the parameter: (tensor name, turn)}
Stored = dict[tuple[int | None, ...], tuple[str, Turn]]


class Piece(NamedTuple):
    """Rows of a stored tensor, and the Turn that makes them a block of a parameter.

    Attributes:
        rows: int64[rows].
    """

    name: str
    rows: np.ndarray
    turn: Turn


class Move(NamedTuple):
    """Mesh axes that split a parameter's columns, but split its rows while it is read.

    Attributes:
        column: The axis of the parameter that they split.
        row: The axis that they split while the parameter is read. None if no axis of the rows
            splits over them: then each device reads whole rows and drops the rest.
        mesh_axes: Names of the mesh axes.
    """

    column: int
    row: int | None
    mesh_axes: tuple[str, ...]


def by_parameter(places: Mapping[str, list[Place]]) -> dict[str, Stored]:
    """Return the stored tensors of each parameter: a table of places, looked up from the other side.

    Args:
        places: From hf_names.tensors or v4_names.tensors.

    Returns:
        {parameter path: {index in the parameter: (tensor name, turn)}}.
    """
    tensors_by_path: dict[str, Stored] = {}
    for name, tensor_places in places.items():
        for place in tensor_places:
            tensors_by_path.setdefault(place.path, {})[place.index] = name, place.turn
    return tensors_by_path


def while_read(leaf: jax.ShapeDtypeStruct, turn: Turn):
    """Return a parameter's sharding while it is read, and the Moves to its final sharding.

    Args:
        leaf: From tree.abstract_params.
        turn: The Turn of one of the parameter's tensors.

    Returns:
        (NamedSharding, Moves). The Moves are undone from the last to the first.
    """
    mesh, moves = leaf.sharding.mesh, []
    spec = [_split_by(mesh, entry) for entry in leaf.sharding.spec]
    filled_axes = [axis for axis, index in enumerate(turn.index) if index == ":"]
    # turn.order has the axis of the view that each of these is, and the view begins with the rows
    rows = [
        axis
        for axis, view_axis in zip(filled_axes, turn.order, strict=True)
        if view_axis < turn.row_axes
    ]
    for column in filled_axes:
        axes = spec[column]
        if column in rows or not axes:
            continue
        candidates = (
            row for row in rows if leaf.shape[row] % axis_parts(mesh, spec[row] + axes) == 0
        )
        row = next(candidates, None)
        spec[column] = ()
        if row is not None:
            spec[row] += axes
        moves.append(Move(column, row, axes))
    return NamedSharding(mesh, PartitionSpec(*(axes or None for axes in spec))), tuple(moves)


def steps(leaf: jax.ShapeDtypeStruct, stored: Stored, devices):
    """Plan the reads of a parameter for some devices of a mesh, tensor by tensor.

    In a step, each device gets the piece of one tensor that belongs at `start` in its own block.
    With expert=2, for example, this is expert 0 on one device and the middle expert on another.
    Devices with the same block share its piece.

    Args:
        leaf: From tree.abstract_params.
        stored: The parameter's entry in by_parameter.
        devices: Devices of the mesh; (None,) without a mesh.

    Yields:
        (start, [(Piece, devices)]).
    """
    turn = next(iter(stored.values()))[1]
    blocks = _blocks(leaf, turn, devices)
    stacked_flags = [index != ":" for index in turn.index]
    first_block = next(iter(blocks.values()))
    step_counts = [
        last - first if is_stacked else 1
        for is_stacked, (first, last) in zip(stacked_flags, first_block, strict=True)
    ]
    for start in np.ndindex(*step_counts):
        sharers: dict[tuple, list] = {}
        for device, block in blocks.items():
            axes = list(zip(stacked_flags, block, start, strict=True))
            index = tuple(
                first + offset if is_stacked else None for is_stacked, (first, _), offset in axes
            )
            ranges = tuple(bounds for is_stacked, bounds, _ in axes if not is_stacked)
            sharers.setdefault((index, ranges), []).append(device)
        yield (
            start,
            [
                (_piece(stored[i], ranges), piece_devices)
                for (i, ranges), piece_devices in sharers.items()
            ],
        )


def _blocks(leaf, turn, devices):
    """Return {device: ((start, stop) for each axis)}: the block that each device reads."""
    if leaf.sharding is None:
        return {device: tuple((0, size) for size in leaf.shape) for device in devices}
    device_indices = while_read(leaf, turn)[0].devices_indices_map(leaf.shape)
    return {
        device: tuple(
            axis_slice.indices(size)[:2]
            for axis_slice, size in zip(device_indices[device], leaf.shape, strict=True)
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
    """Return the mesh axes of a PartitionSpec's entry that split anything, as a tuple."""
    axes = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)
