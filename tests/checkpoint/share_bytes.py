"""The bytes that each process should read of a checkpoint, from the plan of its pieces: an oracle of fill."""

import math

import numpy as np
from jax.sharding import Mesh

from deepseek_jax.checkpoint.hf_names import tensors
from deepseek_jax.checkpoint.share import by_parameter, steps
from deepseek_jax.checkpoint.tree import abstract_params
from deepseek_jax.models import ModelConfig


def share_bytes(config: ModelConfig, dtype, mesh: Mesh, process: int):
    """How many bytes of tensors and scales a process reads when load_hf places the config on the mesh.

    Headers and the comparison of copies (embedding and head of multi-token prediction) are not in it.
    dtype: function from a tensor's name to its dtype as stored; one of one byte is FP8 with scales.
    """
    devices = [device for device in mesh.devices.flat if device.process_index == process]
    leaves, total = abstract_params(config, mesh=mesh), 0
    for path, stored in by_parameter(tensors(config)).items():
        for _, pieces in steps(leaves[path], stored, devices):
            total += sum(_piece_bytes(piece, dtype(piece.name)) for piece, _ in pieces)
    return total


def _piece_bytes(piece, dtype):
    columns = math.prod(piece.turn.shape[1:])
    count = len(piece.rows) * columns * dtype.itemsize
    if dtype.itemsize == 1:
        # Scales are float32, one for 128 x 128
        count += 4 * len(np.unique(piece.rows // 128)) * -(-columns // 128)
    return count
