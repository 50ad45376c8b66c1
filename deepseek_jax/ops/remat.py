"""What a layer's backward pass gets from its forward pass, where it computes the rest anew."""

from jax.ad_checkpoint import checkpoint_name

from deepseek_jax.ops.cpu import remat as cpu
from deepseek_jax.ops.platform import choose

SAVED = "saved_for_backward"  # the name that a remat policy looks for


def save_for_backward(x):
    """x, saved where ModelConfig.remat is "selective"."""
    return choose("save_for_backward", plain=checkpoint_name, bits=cpu.save_bits)(x, SAVED)
