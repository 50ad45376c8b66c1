"""Mark what a layer saves for its backward pass, which recomputes the rest.

Tests: tests/models/test_decoder.py.
"""

from jax.ad_checkpoint import checkpoint_name

from deepseek_jax.ops.cpu import remat as cpu
from deepseek_jax.ops.platform import choose
from deepseek_jax.ops.saved_names import SAVED


def save_for_backward(x):
    """Return x, marked to be saved for the backward pass if ModelConfig.remat is "selective"."""
    return choose("save_for_backward", plain=checkpoint_name, bits=cpu.save_bits)(x, SAVED)
