"""Sharded parameters from stored tensors: processes read their shares, devices exchange columns.

Tests: tests/checkpoint/test_share.py, tests/checkpoint/test_hf_import.py.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.checkpoint.hf_names import tensors
from deepseek_jax.checkpoint.share import Piece, Stored, by_parameter, steps, while_read
from deepseek_jax.checkpoint.tree import abstract_params, compute_dtype, from_paths
from deepseek_jax.checkpoint.turn import Place
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.params import is_float32
from deepseek_jax.ops import fp4
from deepseek_jax.ops.fp8 import BLOCK, dequantize
from deepseek_jax.trees import PyTree

# Rows are read without the rest of their block, with one scale for 128 columns of each row
ROW_BLOCK = (1, BLOCK[1])
# Most bytes of rows that are read ahead of the devices; a single step may have more
AHEAD_BYTES = 2**28


def load_tensors(config: ModelConfig, source, dtype: str | None = None, mesh: Mesh | None = None):
    """Read all parameters from a source of tensors, placed on the mesh.

    The processes of the mesh call it together; share.py says what each of them reads.

    Args:
        config: The model; its tensors are the ones in hf_names.
        source: Has the methods dtype, read_rows and where, and the number READS, of
            hf_files.HFFiles. source.read_rows(name, rows) returns rows in the requested order, so
            it may also read whole tensors. Up to READS threads call it at once.
        dtype: Dtype of the parameters, except router biases, which are float32. None: keep the
            stored dtypes, with bfloat16 for FP8.
        mesh: None places the parameters on the default device.

    Returns:
        (config, params). config.dtype suits the parameters, see tree.compute_dtype.

    Raises:
        ValueError: A number is not finite. The message has the tensor's name and
            source.where(tensor).
    """
    params = read_params(config, tensors(config), source, dtype, mesh)
    return dataclasses.replace(config, dtype=compute_dtype(params)), params


def read_params(
    config: Network,
    places: Mapping[str, list[Place]],
    source,
    dtype: str | None,
    mesh: Mesh | None,
) -> PyTree:
    """Read the parameters of load_tensors, from the tensors in a table.

    Args:
        config: The model.
        places: The table, from hf_names.tensors or v4_names.tensors.
        source: As in load_tensors.
        dtype: As in load_tensors.
        mesh: As in load_tensors.
    """
    leaves = abstract_params(config, _dtypes(places, source, dtype), mesh)
    stored_tensors = by_parameter(places)
    read_steps = (
        step
        for path, tensor_turns in stored_tensors.items()
        for step in _asked(path, leaves[path], tensor_turns)
    )
    with contextlib.closing(read_ahead(source, read_steps)) as steps_with_rows:
        params = {
            path: _finite(
                source, fill(leaves[path], stored_tensors[path], path_steps), stored_tensors[path]
            )
            for path, path_steps in itertools.groupby(steps_with_rows, lambda pair: pair[0].path)
        }
    return from_paths(params)


def decode(tensor, scale, dtype, tile: tuple[int, int] = BLOCK):
    """Convert a stored tensor to a parameter's dtype: FP8 or FP4 times its scale in float32, then cast.

    Args:
        tensor: The tensor as stored; int8 with scales is FP4.
        scale: The scales of a quantised tensor; None for other dtypes.
        dtype: The parameter's dtype.
        tile: Rows and columns that share one scale of FP8.
    """
    if scale is None:
        return tensor.astype(dtype)
    if tensor.dtype == jnp.int8:
        return fp4.dequantize(tensor, scale).astype(dtype)
    return dequantize(tensor, scale, tile).astype(dtype)


class Step(NamedTuple):
    """A step of share.steps, for one parameter.

    Attributes:
        start: The place of the pieces in each device's block.
        pieces: [(Piece, its devices)].
    """

    path: str
    start: tuple[int, ...]
    pieces: list[tuple[Piece, list]]

    def read(self, source):
        """Read the pieces: a list of (rows, scale or None)."""
        return [source.read_rows(piece.name, piece.rows) for piece, _ in self.pieces]

    def bytes(self, source):
        """Return the size of the pieces' rows in bytes, without scales; of FP4 twice the size."""
        return sum(
            len(piece.rows) * math.prod(piece.turn.shape[1:]) * source.dtype(piece.name).itemsize
            for piece, _ in self.pieces
        )


def _asked(path, leaf, stored):
    devices = leaf.sharding.addressable_devices if leaf.sharding else (None,)
    return (Step(path, *step) for step in steps(leaf, stored, devices))


def read_ahead(source, steps: Iterable[Step]):
    """Read steps ahead of their use, up to source.READS at once.

    A file system over a network answers many reads in the time of one.

    Args:
        source: As in load_tensors.

    Yields:
        (Step, what Step.read returned), in the order of the steps.
    """
    # The reads under way, with their bytes
    pending_reads: collections.deque[tuple[Step, Future, int]] = collections.deque()

    def next_read():
        step, future, _ = pending_reads.popleft()
        return step, future.result()

    with ThreadPoolExecutor(source.READS) as readers:
        try:
            for step in steps:
                size = step.bytes(source)
                while pending_reads and (
                    len(pending_reads) == source.READS
                    or size + sum(other_size for *_, other_size in pending_reads) > AHEAD_BYTES
                ):
                    yield next_read()
                pending_reads.append((step, readers.submit(step.read, source), size))
            while pending_reads:
                yield next_read()
        finally:
            for _, future, _ in pending_reads:
                future.cancel()


def fill(leaf: jax.ShapeDtypeStruct, stored: Stored, read):
    """Place one parameter on its devices.

    Args:
        leaf: From tree.abstract_params.
        stored: The parameter's entry in share.by_parameter.
        read: The pairs (Step, rows) that read_ahead yields for the parameter.

    Returns:
        The array.
    """
    parameter = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    moves = while_read(leaf, next(iter(stored.values()))[1])[1] if leaf.sharding else ()
    for step, rows in read:
        write = _writer(step.pieces[0][0].turn, leaf.sharding, moves)
        rows_and_devices = [
            (piece_rows, devices)
            for piece_rows, (_, devices) in zip(rows, step.pieces, strict=True)
        ]
        tensor, scale = _on_devices(leaf.sharding, rows_and_devices)
        # Wait: rows that queue up for the devices would fill the host's memory
        parameter = jax.block_until_ready(write(parameter, tensor, scale, step.start))
    return parameter


@jax.jit
def _all_finite(parameter):
    return jnp.isfinite(parameter).all()


def _finite(source, parameter, stored):
    """Return the parameter, or raise ValueError if one of its numbers is not finite."""
    if _all_finite(parameter):
        return parameter
    # Only after a failure: whole tensors take time to read. Each process can name the faulty one
    for name, turn in stored.values():
        rows, scale = source.read_rows(name, np.arange(turn.shape[0]))
        tensor = decode(rows, scale, jnp.float32, ROW_BLOCK)
        bad_indices = np.argwhere(~np.isfinite(np.asarray(tensor)))
        if len(bad_indices):
            raise ValueError(
                f"{name} in {source.where(name)} has {len(bad_indices)} numbers that are not finite, the "
                f"first at {bad_indices[0].tolist()}; take another copy of the checkpoint"
            )
    raise AssertionError("a parameter is not finite, and all of its tensors are")


def _on_devices(sharding, pieces):
    """Place the rows and scales of a step on the devices, under a leading axis of devices.

    Args:
        sharding: The parameter's sharding, or None without a mesh.
        pieces: [((rows, scale or None) of a piece, its devices)].

    Returns:
        (rows, scale or None). Each device has one piece.
    """
    if sharding is None:
        return jax.tree.map(lambda array: array[None], pieces[0][0])
    mesh = sharding.mesh
    place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def put(*piece_arrays):
        # One array for each piece
        device_arrays = [
            jax.device_put(piece_array[None], device)
            for piece_array, (_, devices) in zip(piece_arrays, pieces, strict=True)
            for device in devices
        ]
        shape = (mesh.size, *piece_arrays[0].shape)
        return jax.make_array_from_single_device_arrays(shape, place, device_arrays)

    return jax.tree.map(put, *(arrays for arrays, _ in pieces))


@functools.cache
def _writer(turn, sharding, moves):
    """Build the jitted function that writes one step into a parameter, in place.

    The function is (parameter, rows, scale, start) -> parameter. It puts every device's rows into
    its block, at the place `start`, which is the same on all devices.

    Args:
        turn: The Turn of the step's pieces.
        sharding: The parameter's sharding, or None without a mesh.
        moves: From share.while_read.
    """

    def write(parameter, rows, scale, start):
        update = turn.to_parameter(decode(rows, scale, parameter.dtype, ROW_BLOCK)[0])
        # Stacked axes (layer, expert, half) get size 1: update and parameter need the same rank
        shape = iter(update.shape)
        update = update.reshape([next(shape) if axis == ":" else 1 for axis in turn.index])
        for move in reversed(moves):
            update = _undo(move, update)
        return jax.lax.dynamic_update_slice(parameter, update, start)

    if sharding:
        by_device = PartitionSpec(sharding.mesh.axis_names)
        specs = sharding.spec, by_device, by_device, PartitionSpec()
        write = jax.shard_map(
            write, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec, check_vma=False
        )
    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _undo(move, update):
    """Exchange rows for columns: each device gets its columns of all rows."""
    column, row, axes = move
    if row is not None:
        return jax.lax.all_to_all(update, axes, split_axis=column, concat_axis=row, tiled=True)
    size = update.shape[column] // jax.lax.axis_size(axes)
    start = jax.lax.axis_index(axes) * size
    return jax.lax.dynamic_slice_in_dim(update, start, size, column)


def _dtypes(places, source, dtype):
    """Choose the dtype of every parameter: `dtype`, or the one that its stored tensors promote to.

    Returns:
        {path: dtype}.
    """
    dtypes = {}
    for name, tensor_places in places.items():
        stored_dtype = source.dtype(name)
        # FP8 or FP4 times its scale becomes bfloat16
        tensor_dtype = jnp.dtype(jnp.bfloat16) if stored_dtype.itemsize == 1 else stored_dtype
        for place in tensor_places:
            if is_float32(place.path):
                dtypes[place.path] = jnp.dtype(jnp.float32)
            else:
                dtypes[place.path] = jnp.dtype(
                    dtype or jnp.promote_types(tensor_dtype, dtypes.get(place.path, tensor_dtype))
                )
    return dtypes
