"""Rows of a batch that any process may have, moved to the devices that read them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.parallel.shard import batch_parts, batch_sharding


def put_owned(mesh: Mesh, batch: dict, owners: np.ndarray) -> dict:
    """Move a batch onto the mesh, as put_batch does, when each process has only its own rows.

    Every process calls this. The devices move the rows, so no process holds another one's rows.

    Args:
        mesh: The mesh.
        batch: {name: numpy array [b t]} of int32, float32 or bool; only own rows are read.
        owners: int[b], the process that has each row.
    """
    process_of_device = [device.process_index for device in mesh.devices.flat]
    own_devices = np.flatnonzero(np.equal(process_of_device, jax.process_index())).tolist()
    own_rows = np.flatnonzero(owners == jax.process_index())
    width = rows_per_device(np.bincount(owners), np.bincount(process_of_device))

    def put(host_rows, padding):
        """Split host_rows over this process's devices, `width` on each, and pad them."""

        def on_device(index):
            first_row = own_devices.index((index[0].start or 0) // width) * width
            rows = host_rows[first_row : first_row + width]
            pad_widths = [(0, width - len(rows))] + [(0, 0)] * (host_rows.ndim - 1)
            return np.pad(rows, pad_widths, constant_values=padding)

        shape = len(process_of_device) * width, *host_rows.shape[1:]
        return jax.make_array_from_callback(shape, source_sharding(mesh), on_device)

    rows = {name: put(array[own_rows], 0) for name, array in batch.items()}
    # A place past the end is no row of the batch
    return move(mesh)(len(owners), put(own_rows.astype(np.int32), len(owners)), rows)


def rows_per_device(rows, devices) -> int:
    """Return the room for rows on each device: a power of two, so that few sizes are compiled.

    Args:
        rows: int[p], the rows of each process; those that are left out have none.
        devices: int[p], the number of its devices.
    """
    most_rows = max(
        -(-num_rows // num_devices)
        for num_rows, num_devices in zip(rows.tolist(), devices.tolist(), strict=False)
    )
    return 1 << (most_rows - 1).bit_length()


def abstract_owned(
    mesh: Mesh, batch: dict[str, jax.ShapeDtypeStruct]
) -> tuple[int, jax.ShapeDtypeStruct, dict[str, jax.ShapeDtypeStruct]]:
    """Return the arguments of `move` as ShapeDtypeStructs, for rows that processes have evenly.

    Args:
        mesh: The mesh.
        batch: Of [b t].
    """
    devices_per_process = np.bincount([device.process_index for device in mesh.devices.flat])
    (count,) = {array.shape[0] for array in batch.values()}
    width = rows_per_device(
        np.full(len(devices_per_process), -(-count // len(devices_per_process))),
        devices_per_process,
    )
    sharding = source_sharding(mesh)

    def spread(array):
        shape = mesh.size * width, *array.shape[1:]
        return jax.ShapeDtypeStruct(shape, array.dtype, sharding=sharding)

    rows = {name: spread(array) for name, array in batch.items()}
    return count, spread(jax.ShapeDtypeStruct((count,), np.int32)), rows


def source_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of rows before they move: an equal share on every device."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


@functools.cache
def move(mesh: Mesh) -> jax.stages.Wrapped:
    """Build the jitted program of put_owned.

    It takes the number of rows (static), their places int32[z], and {name: array [z t]}, split by
    source_sharding. A device holds one row for each part of the batch at a time, which it adds up
    with those of the others: one of them has the row, and the others have zeros.
    """
    sharding = batch_sharding(mesh)
    num_parts, batch_axes = batch_parts(mesh), sharding.spec[0]
    other_axes = tuple(axis for axis in mesh.axis_names if axis not in batch_axes)

    def moved(count, places, array):
        # Bits are added, which is exact for every number
        bits = array.astype(jnp.uint8) if array.dtype == bool else array.view(jnp.int32)
        rows_per_part = count // num_parts

        def row_of_each_part(i):
            part_z = jnp.where(places % rows_per_part == i, places // rows_per_part, num_parts)
            rows_of_parts = jnp.zeros((num_parts, *bits.shape[1:]), bits.dtype)
            rows_of_parts = rows_of_parts.at[part_z].set(bits, mode="drop")
            rows_of_parts = jax.lax.psum_scatter(
                rows_of_parts, batch_axes, scatter_dimension=0, tiled=True
            )
            return jax.lax.psum(rows_of_parts, other_axes)

        rows = jax.lax.map(row_of_each_part, jnp.arange(rows_per_part))[:, 0]
        return rows.astype(bool) if array.dtype == bool else rows.view(array.dtype)

    @functools.partial(jax.jit, static_argnums=0, out_shardings=sharding)
    def program(count, places, rows):
        def on_device(places, rows):
            return jax.tree.map(lambda array: moved(count, places, array), rows)

        source_spec = source_sharding(mesh).spec
        return jax.shard_map(
            on_device, mesh=mesh, in_specs=source_spec, out_specs=PartitionSpec(batch_axes)
        )(places, rows)

    return program
