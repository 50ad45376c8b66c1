"""Weights in the form for decoding, which multiplies each of them by few rows many times."""

from deepseek_jax.ops.cpu import dot as cpu
from deepseek_jax.ops.platform import choose


def prepare(w, num_inputs: int):
    """Convert a Linear layer's weight to the form that ops.dot.dot multiplies by few rows fastest.

    w: [inputs... outputs...]; a product contracts its first num_inputs axes. The result need not be an array:
    only dot can use it.
    """
    return choose("prepare", as_it_is=_as_it_is, inputs_last=cpu.InputsLast.of)(w, num_inputs)


def _as_it_is(w, num_inputs):
    return w
