"""LowRank: a parameter with an adapter, which becomes one array where a module reads it.

Tests: tests/models/test_adapters.py.
"""

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
    """A weight W = base + scale * a @ b (arXiv:2106.09685, section 4.1).

    All arrays may have a leading axis of layers, which lax.scan removes.

    Attributes:
        base: [inputs... outputs...], an array or a qwix.QArray.
        pairs: One (a, b), see ops.low_rank. For a gated MLP's first weight [inputs 2 outputs] two
            of them, one for each half; one of the two may be None.
        scale: The factor on the product, alpha / rank.
        of_experts: True if the arrays have a leading axis of experts.
    """

    base: jax.Array
    pairs: tuple
    scale: float
    of_experts: bool

    def dense(self):
        """Compute W in float32; the product with W rounds it to the compute dtype."""
        deltas = [pair and low_rank(*pair, of_experts=self.of_experts) for pair in self.pairs]
        if len(deltas) == 1:
            (delta,) = deltas
        else:
            known = next(delta for delta in deltas if delta is not None)
            # A half without an adapter changes by zero
            halves = [jnp.zeros_like(known) if delta is None else delta for delta in deltas]
            delta = jnp.stack(halves, axis=-2)
        return dense(self.base).astype(jnp.float32) + self.scale * delta


def is_weight(node):
    """Return True if a node of params is a weight of several arrays: a LowRank or qwix.QArray."""
    return isinstance(node, LowRank) or _is_quantized(node)


def dense(leaf):
    """Return a parameter as one array, also if it is a LowRank or a qwix.QArray."""
    if _is_quantized(leaf):
        import qwix

        return qwix.dequantize(leaf)
    return leaf.dense() if isinstance(leaf, LowRank) else leaf


def _is_quantized(node):
    # Recognised by its field: only runs that quantize import qwix
    return hasattr(node, "qvalue")
