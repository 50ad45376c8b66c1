"""Mark what a layer saves for its backward pass, which recomputes the rest."""

from jax.ad_checkpoint import checkpoint_name

from deepseek_jax.ops.cpu import remat as cpu
from deepseek_jax.ops.platform import choose

# The name that the remat policy of models.decoder looks for
SAVED = "saved_for_backward"
# That of ModelConfig.remat="attention": what attention by blocks has to compute before its gradient
ATTENDED = "attended"


def save_for_backward(x):
    """x, saved where ModelConfig.remat is "selective"."""
    return choose("save_for_backward", plain=checkpoint_name, bits=cpu.save_bits)(x, SAVED)
