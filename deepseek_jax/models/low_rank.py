"""A parameter with an adapter beside it, which becomes one array where a module reads it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from deepseek_jax.ops.low_rank import low_rank


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "pairs"],
    meta_fields=["scale", "of_experts"],
)
@dataclasses.dataclass(frozen=True)
class LowRank:
    """W = base + scale * a @ b (arXiv:2106.09685, section 4.1).

    base: [inputs... outputs...], an array or a qwix.QArray. pairs: one (a, b), see ops.low_rank; or two, for
    the halves of a gated MLP's first weight [inputs 2 outputs], of which one may be None. All arrays may have
    a leading axis of layers, which lax.scan takes off.
    """

    base: jax.Array
    pairs: tuple
    scale: float
    of_experts: bool

    def dense(self):
        """W in float32, which the product with it rounds to the compute dtype."""
        deltas = [pair and low_rank(*pair, of_experts=self.of_experts) for pair in self.pairs]
        if len(deltas) == 1:
            (delta,) = deltas
        else:
            known = next(delta for delta in deltas if delta is not None)
            # Zeros, where one half has no adapter
            halves = [jnp.zeros_like(known) if delta is None else delta for delta in deltas]
            delta = jnp.stack(halves, axis=-2)
        return dense(self.base).astype(jnp.float32) + self.scale * delta


def is_weight(node):
    """Whether a node of a tree of params is a weight of several arrays: a LowRank or a qwix.QArray."""
    return isinstance(node, LowRank) or _is_quantized(node)


def dense(leaf):
    """A parameter as one array, whatever holds it."""
    if _is_quantized(leaf):
        import qwix

        return qwix.dequantize(leaf)
    return leaf.dense() if isinstance(leaf, LowRank) else leaf


def _is_quantized(node):
    # By its field, so that nothing imports qwix that does not quantize
    return hasattr(node, "qvalue")
