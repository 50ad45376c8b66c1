"""The file of an adapter's tensors, and a digest of each, by which damage is found."""

from hashlib import blake2b
from pathlib import Path

from safetensors.numpy import load_file

from deepseek_jax.checkpoint.damage import REMEDY, check_digests, read_together
from deepseek_jax.files import staged


def read_tensors(path: str | Path, digests: dict | None):
    """{name: numpy array} of a safetensors file; the processes of a run call it together.

    digests: tensor_digests of what was written, None if they are not known. Raises DamagedCheckpoint where
    the file cannot be read, and, with its name, where a tensor is not what was written.
    """
    tensors = read_together(path, lambda: load_file(staged(path)), remedy=REMEDY)
    if digests is not None:
        # A tensor that is missing has no digest
        found = dict.fromkeys(digests) | tensor_digests(tensors)
        check_digests(path, found, digests, REMEDY)
    return tensors


def tensor_digests(tensors):
    """{name: 16 hexadecimal digits} for the dtype, shape and numbers of each numpy array."""
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def _digest(tensor):
    digest = blake2b(f"{tensor.dtype}{tensor.shape}".encode(), digest_size=8)
    digest.update(tensor.tobytes())
    return digest.hexdigest()
