"""The safetensors file of an adapter, and a digest of each tensor that reveals damage.

Tests: tests/checkpoint/test_damage.py.
"""

from hashlib import blake2b
from pathlib import Path

from safetensors.numpy import load_file

from deepseek_jax.checkpoint.damage import REMEDY, check_digests, read_together
from deepseek_jax.files import staged


def read_tensors(path: str | Path, digests: dict | None):
    """Read the tensors of an adapter and compare them with their digests.

    The processes of a run call it together.

    Args:
        path: The safetensors file.
        digests: What tensor_digests returned when the file was written; None if that is unknown,
            and nothing is compared.

    Returns:
        {name: numpy array}.

    Raises:
        DamagedCheckpoint: The file cannot be read, or a tensor is not what was written. In the
            second case the message has the tensor's name.
    """
    tensors = read_together(path, lambda: load_file(staged(path)), remedy=REMEDY)
    if digests is not None:
        check_digests(path, tensor_digests(tensors), digests, REMEDY)
    return tensors


def tensor_digests(tensors):
    """Compute a digest of each numpy array from its dtype, its shape and its numbers.

    Returns:
        {name: 16 hexadecimal digits}.
    """
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def _digest(tensor):
    digest = blake2b(f"{tensor.dtype}{tensor.shape}".encode(), digest_size=8)
    digest.update(tensor.tobytes())
    return digest.hexdigest()
