"""THE table of what the backward pass of a layer computes again instead of saving it. Without jax."""

from typing import NamedTuple

from deepseek_jax.ops.saved_names import ATTENDED, LAYER_INPUT, SAVED


class RematPolicy(NamedTuple):
    """What the forward pass of a layer keeps for the backward pass, beside the layer's input.

    recomputes: the rest, in words. saves, offloads: names of values, see ops.saved_names; the latter wait in
    the host's memory. saves_products: the results of products with weights.
    """

    recomputes: str
    saves: tuple[str, ...] = ()
    offloads: tuple[str, ...] = ()
    saves_products: bool = False


# ModelConfig.remat, where it is not "none" -> what it means
REMAT_POLICIES = {
    "full": RematPolicy("the whole layer, from its input"),
    "attention": RematPolicy(
        "all but the results of attention that works through a long row by blocks",
        saves=(ATTENDED,),
    ),
    "dots": RematPolicy("all but the results of its products with weights", saves_products=True),
    "selective": RematPolicy(
        "norms, SwiGLU, attention and its up-projections (arXiv:2412.19437, section 3.2.3)",
        saves=(SAVED,),
    ),
    "offload": RematPolicy(
        "the whole layer, from its input, which waits in the host's memory",
        offloads=(LAYER_INPUT,),
    ),
}
