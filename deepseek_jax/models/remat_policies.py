"""The table of remat policies: what the backward pass of a layer computes again.

This file does not import jax.

Tests: tests/models/test_decoder.py.
"""

from typing import Literal, NamedTuple

from deepseek_jax.ops.saved_names import ATTENDED, LAYER_INPUT, SAVED


class RematPolicy(NamedTuple):
    """What a layer's forward pass saves for its backward pass, in addition to the layer's input.

    Attributes:
        recomputes: What the backward pass computes again, in words.
        saves: Names of values, see ops.saved_names, that stay on the device.
        offloads: Names of values, see ops.saved_names, that wait in the host's memory.
        saves_products: True if the results of products with weights are saved.
    """

    recomputes: str
    saves: tuple[str, ...] = ()
    offloads: tuple[str, ...] = ()
    saves_products: bool = False


RematName = Literal["full", "attention", "dots", "selective", "offload"]
# The values of ModelConfig.remat
Remat = Literal["none", RematName]
REMAT_POLICIES: dict[RematName, RematPolicy] = {
    "full": RematPolicy("the whole layer, from its input"),
    "attention": RematPolicy(
        "all but the results of attention that works through a long row by blocks",
        saves=(ATTENDED,),
    ),
    "dots": RematPolicy("all but the results of its products with weights", saves_products=True),
    "selective": RematPolicy(
        "norms, SwiGLU and attention's up-projections (arXiv:2412.19437, section 3.2.3)",
        saves=(SAVED, ATTENDED),
    ),
    "offload": RematPolicy(
        "the whole layer, from its input, which waits in the host's memory",
        offloads=(LAYER_INPUT,),
    ),
}


def saves_marked(remat: Remat) -> bool:
    """Return whether a layer saves what ops.remat.save_for_backward marks."""
    return remat == "none" or SAVED in REMAT_POLICIES[remat].saves
