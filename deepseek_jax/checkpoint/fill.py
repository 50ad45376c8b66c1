"""Fill sharded parameters from stored tensors: each process reads its share, and devices exchange columns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.checkpoint.hf_names import tensors
from deepseek_jax.checkpoint.share import by_parameter, steps, while_read
from deepseek_jax.checkpoint.tree import abstract_params, compute_dtype, from_paths
from deepseek_jax.models import ModelConfig
from deepseek_jax.ops.fp8 import BLOCK, dequantize

# One scale for 128 columns of a row: rows that are read alone have their block's scales
ROW_BLOCK = (1, BLOCK[1])


def load_tensors(config: ModelConfig, source, dtype: str | None = None, mesh: Mesh | None = None):
    """Fill the parameters from a source with HFFiles' dtype and read_rows: -> (config, params).

    The processes of the mesh call it together; share.py says what each of them reads.
    source.read_rows(name, rows) returns rows in the order asked for, so it may also read whole tensors.
    Raises ValueError for a number that is not finite: it names the tensor and source.where(tensor).
    """
    wanted = abstract_params(config, _dtypes(config, source, dtype), mesh)
    params = {
        path: _finite(source, fill(source, wanted[path], stored), stored)
        for path, stored in by_parameter(config).items()
    }
    return dataclasses.replace(config, dtype=compute_dtype(params)), from_paths(params)


def decode(tensor, scale, dtype, tile: tuple[int, int] = BLOCK):
    """A stored tensor in the dtype of a parameter: FP8 times its scale in float32, then cast."""
    return (tensor if scale is None else dequantize(tensor, scale, tile)).astype(dtype)


def fill(source, leaf: jax.ShapeDtypeStruct, stored: dict):
    """Read one parameter: -> the array. leaf: of abstract_params; stored: its entry of share.by_parameter."""
    parameter = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    moves, devices = (), (None,)
    if leaf.sharding:
        moves = while_read(leaf, next(iter(stored.values()))[1])[1]
        devices = leaf.sharding.addressable_devices
    for start, pieces in steps(leaf, stored, devices):
        write = _writer(pieces[0][0].turn, leaf.sharding, moves)
        tensor, scale = _read(source, leaf.sharding, pieces)
        # Wait: rows that queue up for the devices would fill the host's memory
        parameter = jax.block_until_ready(write(parameter, tensor, scale, start))
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


def _read(source, sharding, pieces):
    """Read each piece once: -> (rows, scale or None), with a leading axis of devices that have one each."""
    read = [(source.read_rows(piece.name, piece.rows), devices) for piece, devices in pieces]
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
