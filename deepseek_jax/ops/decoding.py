"""Weights for decoding, which multiplies few rows by each of them again and again."""

from deepseek_jax.ops.cpu import dot as cpu
from deepseek_jax.ops.platform import choose


def prepare(w, num_inputs):
    """A Linear layer's weight [inputs... outputs...], whose first num_inputs axes a product contracts, in the
    form in which ops.dot.dot multiplies few rows by it fastest. That may be no array: it is for dot alone.
    """
    return choose("prepare", as_it_is=_as_it_is, inputs_last=cpu.InputsLast.of)(w, num_inputs)


def _as_it_is(w, num_inputs):
    return w
