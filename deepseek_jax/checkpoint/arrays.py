"""Arrays in an Orbax folder, with digests that depend neither on the mesh nor on the dtype that is read."""

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

# The largest chunk of a stored array, in bytes: a process reads the chunks that it needs
CHUNK_BYTES = 2**24
_fingerprint = jax.jit(fingerprint_as, static_argnames="dtype")


def save_arrays(path: str | Path, tree):
    """Write a tree of arrays with its digests. The processes of a run call it together."""
    digests = {name: _digests(leaf) for name, leaf in by_path(tree).items()}
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    with context:
        ocp.save(path, tree, custom_metadata={"digests": digests})


class StoredArrays:
    """Arrays that save_arrays wrote. tree: their shapes and dtypes.

    The processes of a run use it together. Raises DamagedCheckpoint, on all of them, where one cannot read
    the folder, and ValueError as damage.digests_in does.
    """

    def __init__(self, path: str | Path):
        quiet_orbax()

        def read():
            about = ocp.metadata(path)
            # Orbax takes an unreadable file of its own for an empty one
            if about.metadata is None or about.init_timestamp_nsecs is None:
                raise ValueError("Orbax's own metadata are not whole")
            return about

        self.path, about = path, read_together(path, read, remedy=REMEDY)
        self.tree, self._saved = about.metadata, digests_in(path, about.custom_metadata or {})

    def load(self, wanted):
        """The arrays. wanted: the same tree, of ShapeDtypeStructs with shardings: of any dtype, on any mesh.

        Raises DamagedCheckpoint where an array is not what was saved, rounded to the dtype that is wanted: it
        names the array.
        """

        def read():
            return jax.block_until_ready(ocp.load(self.path, wanted))

        tree = read_together(self.path, read, by_path(wanted), REMEDY)
        leaves, kept = by_path(tree), self._saved
        saved = {name: kept.get(name, {}).get(leaf.dtype.name) for name, leaf in leaves.items()}
        # Read in a dtype that is neither the stored one nor one of FLOATS
        unknown = [name for name in leaves if saved[name] is None and name in kept]
        if unknown:
            say(f"{self.path}: not checked, as no digests are of their dtype: {', '.join(unknown)}")
        found = {n: _digest(x, x.dtype.name) for n, x in leaves.items() if n not in unknown}
        check_digests(self.path, found, saved, REMEDY)
        return tree


def _digests(leaf):
    """{dtype: digest} of an array for each dtype that it may be read in."""
    own = leaf.dtype.name
    return {kind: _digest(leaf, kind) for kind in (FLOATS if own in FLOATS else (own,))}


def _digest(leaf, dtype):
    # Waits for each: one array after the other, see store._digests
    return int(_fingerprint(on_device(leaf), dtype=dtype))
