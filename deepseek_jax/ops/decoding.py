"""Weights in a form for decoding, which multiplies each weight by few rows, many times.

Tests: tests/ops/cpu/test_dot.py.
"""

from deepseek_jax.ops.cpu import dot as cpu
from deepseek_jax.ops.platform import choose


def prepare(w, num_inputs: int):
    """Convert a Linear layer's weight to the form that ops.dot.dot multiplies by few rows fastest.

    Args:
        w: [inputs... outputs...].
        num_inputs: Number of leading axes of w, which a product contracts.

    Returns:
        The weight for ops.dot.dot only: it need not be an array.
    """
    return choose("prepare", as_it_is=_as_it_is, inputs_last=cpu.InputsLast.of)(w, num_inputs)


def _as_it_is(w, num_inputs):
    return w
