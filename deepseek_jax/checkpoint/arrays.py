"""Arrays in an Orbax folder, checked by digests when they are read.

The digests depend neither on the mesh nor on the dtype in which the arrays are read.

Tests: tests/checkpoint/test_damage.py.
"""

from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from deepseek_jax.checkpoint.damage import (
    REMEDY,
    check_digests,
    digests_in,
    quiet_orbax,
    read_together,
)
from deepseek_jax.checkpoint.tree import by_path
from deepseek_jax.ops.fingerprint import FLOATS, fingerprint_as
from deepseek_jax.parallel.processes import say
from deepseek_jax.parallel.shard import on_device

# The largest chunk of a stored array, in bytes. A process reads only the chunks that it needs
CHUNK_BYTES = 2**24
_fingerprint = jax.jit(fingerprint_as, static_argnames="dtype")


def save_arrays(path: str | Path, tree):
    """Write a tree of arrays, with a digest of each, as an Orbax folder.

    The processes of a run call it together.
    """
    digests = {name: _digests(leaf) for name, leaf in by_path(tree).items()}
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    with context:
        ocp.save(path, tree, custom_metadata={"digests": digests})


class StoredArrays:
    """Arrays that save_arrays wrote, ready to be loaded on any mesh.

    The processes of a run use it together.

    Attributes:
        tree: Shapes and dtypes of the arrays, in the tree that was saved.

    Raises:
        DamagedCheckpoint: A process cannot read the folder. All processes raise it.
        ValueError: As damage.digests_in does.
    """

    def __init__(self, path: str | Path):
        quiet_orbax()

        def read():
            metadata = ocp.metadata(path)
            # If Orbax cannot read its own metadata file, it treats the file as empty
            if metadata.metadata is None or metadata.init_timestamp_nsecs is None:
                raise ValueError("Orbax's own metadata are not whole")
            return metadata

        self.path, metadata = path, read_together(path, read, remedy=REMEDY)
        self.tree, self._saved = metadata.metadata, digests_in(path, metadata.custom_metadata or {})

    def load(self, wanted):
        """Read the arrays and compare them with their digests.

        Args:
            wanted: The same tree, of ShapeDtypeStructs with shardings. Any dtype and any mesh will
                do.

        Returns:
            The tree of arrays.

        Raises:
            DamagedCheckpoint: An array is not what was saved, rounded to the dtype in `wanted`. The
                message has the array's name.
        """

        def read():
            return jax.block_until_ready(ocp.load(self.path, wanted))

        tree = read_together(self.path, read, by_path(wanted), REMEDY)
        leaves, digests_by_dtype = by_path(tree), self._saved
        saved_digests = {
            name: digests_by_dtype.get(name, {}).get(leaf.dtype.name)
            for name, leaf in leaves.items()
        }
        # These are read in a dtype without a digest: neither the stored dtype nor one of FLOATS
        unchecked_names = [
            name for name in leaves if saved_digests[name] is None and name in digests_by_dtype
        ]
        if unchecked_names:
            say(
                f"{self.path}: not checked, as no digests are of their dtype: {', '.join(unchecked_names)}"
            )
        actual_digests = {
            n: _digest(x, x.dtype.name) for n, x in leaves.items() if n not in unchecked_names
        }
        check_digests(self.path, actual_digests, saved_digests, REMEDY)
        return tree


def _digests(leaf):
    """Compute {dtype: digest} of an array, for each dtype in which it may be read."""
    leaf_dtype = leaf.dtype.name
    return {
        dtype: _digest(leaf, dtype) for dtype in (FLOATS if leaf_dtype in FLOATS else (leaf_dtype,))
    }


def _digest(leaf, dtype):
    # int() waits for the result, so arrays follow one after the other: see store._digests
    return int(_fingerprint(on_device(leaf), dtype=dtype))
