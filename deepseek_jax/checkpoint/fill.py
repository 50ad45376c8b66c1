"""Fill sharded parameters from stored tensors: each process reads its share, and devices exchange columns."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.checkpoint.hf_names import tensors
from deepseek_jax.checkpoint.share import Piece, by_parameter, steps, while_read
from deepseek_jax.checkpoint.tree import abstract_params, compute_dtype, from_paths
from deepseek_jax.models import ModelConfig
from deepseek_jax.ops.fp8 import BLOCK, dequantize

# One scale for 128 columns of a row: rows that are read alone have their block's scales
ROW_BLOCK = (1, BLOCK[1])
# Most bytes of rows that wait for the devices, but for those of one step
AHEAD_BYTES = 2**28


def load_tensors(config: ModelConfig, source, dtype: str | None = None, mesh: Mesh | None = None):
    """Fill the parameters from a source with HFFiles' dtype, read_rows and READS: -> (config, params).

    The processes of the mesh call it together; share.py says what each of them reads.
    source.read_rows(name, rows) returns rows in the order asked for, so it may also read whole tensors; up
    to READS threads call it at once. Raises ValueError for a number that is not finite: it names the tensor
    and source.where(tensor).
    """
    wanted = abstract_params(config, _dtypes(config, source, dtype), mesh)
    stored = by_parameter(config)
    asked = (step for path, parts in stored.items() for step in _asked(path, wanted[path], parts))
    with contextlib.closing(read_ahead(source, asked)) as read:
        params = {
            path: _finite(source, fill(wanted[path], stored[path], of_path), stored[path])
            for path, of_path in itertools.groupby(read, lambda each: each[0].path)
        }
    return dataclasses.replace(config, dtype=compute_dtype(params)), from_paths(params)


def decode(tensor, scale, dtype, tile: tuple[int, int] = BLOCK):
    """A stored tensor in the dtype of a parameter: FP8 times its scale in float32, then cast."""
    return (tensor if scale is None else dequantize(tensor, scale, tile)).astype(dtype)


class Step(NamedTuple):
    """A step of share.steps: start and pieces, of the parameter at `path`."""

    path: str
    start: tuple[int, ...]
    pieces: list[tuple[Piece, list]]

    def read(self, source):
        """[(rows, scale or None)] of its pieces."""
        return [source.read_rows(piece.name, piece.rows) for piece, _ in self.pieces]

    def bytes(self, source):
        """Of its rows, without scales."""
        return sum(
            len(piece.rows) * math.prod(piece.turn.shape[1:]) * source.dtype(piece.name).itemsize
            for piece, _ in self.pieces
        )


def _asked(path, leaf, stored):
    devices = leaf.sharding.addressable_devices if leaf.sharding else (None,)
    return (Step(path, *step) for step in steps(leaf, stored, devices))


def read_ahead(source, asked: Iterable[Step]):
    """Read steps, up to source.READS at once: yields (Step, what it read), in their order. A file system over
    a network answers many reads in the time of one.
    """
    # (Step, future, bytes) under way
    ahead = collections.deque()

    def first():
        step, future, _ = ahead.popleft()
        return step, future.result()

    with ThreadPoolExecutor(source.READS) as readers:
        try:
            for step in asked:
                size = step.bytes(source)
                while ahead and (
                    len(ahead) == source.READS
                    or size + sum(other for *_, other in ahead) > AHEAD_BYTES
                ):
                    yield first()
                ahead.append((step, readers.submit(step.read, source), size))
            while ahead:
                yield first()
        finally:
            for _, future, _ in ahead:
                future.cancel()


def fill(leaf: jax.ShapeDtypeStruct, stored: dict, read):
    """Place one parameter: -> the array. leaf: of abstract_params; stored: its entry of share.by_parameter.
    read: what read_ahead yields of its steps.
    """
    parameter = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    moves = while_read(leaf, next(iter(stored.values()))[1])[1] if leaf.sharding else ()
    for step, rows in read:
        write = _writer(step.pieces[0][0].turn, leaf.sharding, moves)
        held = [(one, devices) for one, (_, devices) in zip(rows, step.pieces, strict=True)]
        tensor, scale = _on_devices(leaf.sharding, held)
        # Wait: rows that queue up for the devices would fill the host's memory
        parameter = jax.block_until_ready(write(parameter, tensor, scale, step.start))
    return parameter


@jax.jit
def _all_finite(parameter):
    return jnp.isfinite(parameter).all()


def _finite(source, parameter, stored):
    """The parameter. Raises ValueError where a number of it is not finite."""
    if _all_finite(parameter):
        return parameter
    # Only now: reading tensors whole takes time, and each process can name the one at fault
    for name, turn in stored.values():
        tensor = decode(*source.read_rows(name, np.arange(turn.shape[0])), jnp.float32, ROW_BLOCK)
        broken = np.argwhere(~np.isfinite(np.asarray(tensor)))
        if len(broken):
            raise ValueError(
                f"{name} in {source.where(name)} has {len(broken)} numbers that are not finite, the first at "
                f"{broken[0].tolist()}; take another copy of the checkpoint"
            )
    raise AssertionError("a parameter is not finite, and all of its tensors are")


def _on_devices(sharding, read):
    """(rows, scale or None), with a leading axis of devices that have one piece each. read: [((rows, scale)
    of a piece, its devices)].
    """
    if sharding is None:
        return jax.tree.map(lambda array: array[None], read[0][0])
    mesh = sharding.mesh
    place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def put(*parts):
        # One part for each piece
        held = [
            jax.device_put(part[None], device)
            for part, (_, devices) in zip(parts, read, strict=True)
            for device in devices
        ]
        shape = (mesh.size, *parts[0].shape)
        return jax.make_array_from_single_device_arrays(shape, place, held)

    return jax.tree.map(put, *(arrays for arrays, _ in read))


@functools.cache
def _writer(turn, sharding, moves):
    """Jitted (parameter, rows, scale, start) -> parameter with every device's rows in its block, in place.

    turn, moves: of a step's pieces. start: the place in the block, the same on all devices.
    """

    def write(parameter, rows, scale, start):
        update = turn.to_parameter(decode(rows, scale, parameter.dtype, ROW_BLOCK)[0])
        # Stacked axes (layer, expert, half) get size 1, so that update and parameter have the same rank
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
    """Give each device its own columns of all rows, where it has all columns of its rows."""
    column, row, axes = move
    if row is not None:
        return jax.lax.all_to_all(update, axes, split_axis=column, concat_axis=row, tiled=True)
    size = update.shape[column] // jax.lax.axis_size(axes)
    start = jax.lax.axis_index(axes) * size
    return jax.lax.dynamic_slice_in_dim(update, start, size, column)


def _dtypes(config, source, dtype):
    """The dtype of every parameter, by path: `dtype`, or what the dtypes of its stored tensors promote to."""
    dtypes = {}
    for name, parts in tensors(config).items():
        stored = source.dtype(name)
        # FP8 times its scale becomes bfloat16
        own = jnp.dtype(jnp.bfloat16) if stored.itemsize == 1 else stored
        for part in parts:
            if part.path.endswith("router_bias"):
                dtypes[part.path] = jnp.dtype(jnp.float32)
            else:
                dtypes[part.path] = jnp.dtype(
                    dtype or jnp.promote_types(own, dtypes.get(part.path, own))
                )
    return dtypes
