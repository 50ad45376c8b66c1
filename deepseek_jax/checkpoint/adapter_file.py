"""The file of an adapter's tensors, with a digest of each in its metadata, which peft does not read."""

import json
from hashlib import blake2b
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from deepseek_jax.checkpoint.damage import REMEDY, check_digests, read_together
from deepseek_jax.files import staged, whole_file


def write_tensors(path: str | Path, tensors):
    """Write {name: numpy array} whole."""
    digests = {name: _digest(tensor) for name, tensor in tensors.items()}
    with whole_file(path) as fresh:
        save_file(tensors, fresh, metadata={"format": "pt", "digests": json.dumps(digests)})


def read_tensors(path: str | Path):
    """{name: numpy array} of a file of write_tensors or of peft; the processes of a run call it together.

    Raises DamagedCheckpoint where the file cannot be read, and, with its name, where a tensor is not what
    write_tensors wrote.
    """

    def read():
        local = staged(path)
        with safe_open(local, "numpy") as file:
            digests = (file.metadata() or {}).get("digests")
        # Without digests the file is peft's, or of an earlier version
        return load_file(local), digests and json.loads(digests)

    tensors, digests = read_together(path, read, remedy=REMEDY)
    if digests is not None:
        found = {name: _digest(tensor) for name, tensor in tensors.items()}
        check_digests(path, dict.fromkeys(digests) | found, digests, REMEDY)
    return tensors


def _digest(tensor):
    digest = blake2b(f"{tensor.dtype}{tensor.shape}".encode(), digest_size=8)
    digest.update(tensor.tobytes())
    return digest.hexdigest()
