"""The one matrix product: low precision in, float32 accumulation, gradients at the same precision;
and its form for the few rows of decoding.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from deepseek_jax.ops.platform import on_one_cpu, platform


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def dot(spec, x, w, out_dtype=None):
    """Contract x with w as jnp.einsum does, at x's precision, accumulating in float32.

    spec: an einsum of two operands in which every letter of an operand stands in the other one or in the
    result. x: any float dtype, the compute dtype. w: any float dtype, cast to x's. Returns out_dtype, or
    x's dtype. The gradients are products at x's precision too (autodiff of a bfloat16 product with a
    float32 result would run them in float32), and each arrives in its operand's own dtype, so that
    float32 master weights get float32 gradients.
    """
    return _product(spec, x, w, out_dtype)


def _product(spec, x, w, out_dtype):
    return _einsum(spec, x, w.astype(x.dtype)).astype(out_dtype or x.dtype)


def _einsum(spec, left, right):
    """jnp.einsum into float32. XLA's CPU compiler multiplies in float32 where bfloat16 operands of a batched
    product do not lie as the spec has them: there they are copied so.
    """
    if left.dtype == jnp.bfloat16 and _batch(spec) and on_one_cpu():
        left, right = _in_rows(left), _in_rows(right)
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def _in_rows(array):
    return with_layout_constraint(array, Layout(tuple(range(array.ndim))))


def _batch(spec):
    """The letters of an einsum of two operands that stand in both and in the result."""
    left, right, result = re.split(",|->", spec)
    return [letter for letter in left if letter in right and letter in result]


def _forward(spec, x, w, out_dtype):
    return _product(spec, x, w, out_dtype), (x, w)  # in the open: a remat policy looks for products


def _backward(spec, out_dtype, saved, cotangent):
    x, w = saved
    cotangent = cotangent.astype(x.dtype)
    if platform() == "cpu":
        spec, x, w, cotangent = _with_a_matrix(spec, x, w, cotangent)
        if on_one_cpu():
            # Made once, where each of the two products would make it
            cotangent = _in_rows(cotangent)
    left, right, result = re.split(",|->", spec)
    dx = _einsum(f"{result},{right}->{left}", cotangent, w.astype(x.dtype))
    dw = sum_over_rows(f"{left},{result}->{right}", x, cotangent)
    return tuple(d.reshape(a.shape).astype(a.dtype) for d, a in zip((dx, dw), saved, strict=True))


def _with_a_matrix(spec, x, w, cotangent):
    """The product of a Linear layer, in which w's inputs and its outputs are one axis each: to transpose a
    weight of more axes XLA's CPU compiler copies it. Any other product as given.
    """
    left, right, result = re.split(",|->", spec)
    inputs = "".join(letter for letter in left if letter not in result)
    rows, outputs = left.removesuffix(inputs), right.removeprefix(inputs)
    if (left, right, result) != (rows + inputs, inputs + outputs, rows + outputs):
        return spec, x, w, cotangent
    x, cotangent = (a.reshape(*a.shape[: len(rows)], -1) for a in (x, cotangent))
    spec = f"{rows}{inputs[0]},{inputs[0]}{outputs[0]}->{rows}{outputs[0]}"
    return spec, x, w.reshape(x.shape[-1], -1), cotangent


dot.defvjp(_forward, _backward)


def sum_over_rows(spec, left, right):
    """The product of a gradient, whose contracted axes are not left's last: einsum of two operands of one
    dtype, accumulated in and returned as float32.

    XLA's CPU compiler makes an operand turned round, with all that it is made of, element by element: a
    SwiGLU takes it ten times as long that way, so operands are written out as they lie. Its bfloat16 product
    is of rows that lie contiguously alone, so there the one whose axes come first in the result is turned.
    """
    if on_one_cpu() and left.dtype == jnp.float32:
        left, right = _in_rows(left), _in_rows(right)
    elif on_one_cpu() and left.dtype == jnp.bfloat16:
        first, second, result = re.split(",|->", spec)
        batch = _batch(spec)
        if result[len(batch)] in second:
            first, second, left, right = second, first, right, left
        turned = "".join(sorted(first, key=lambda letter: letter not in result))
        left = _in_rows(jnp.einsum(f"{first}->{turned}", left))  # the compiler would merge it again
        spec = f"{turned},{second}->{result}"
    return _einsum(spec, left, right)


FEW = 64  # rows of x, those of a batch that decodes
# Inputs below which, and elements above which, a CPU reads a weight's rows slowly, several of them at once
SHORT, LARGE = 768, 2**18


def few_rows_dot(spec, x, w, out_dtype=None):
    """`dot` of few rows of x with a w whose contracted axes are its last, in spec too; without gradients.

    XLA's CPU compiler multiplies a tall matrix by 8 or 32 columns 1.2 to 2 times as fast as as many rows by a
    wide one, so there w comes first, and a barrier keeps the product from being turned round. Not so by over
    16 columns where w is float32 and LARGE and its rows SHORT: those it reads faster one after another. One
    column of bfloat16 takes it ten times as long as two, so there are two.
    """
    left, right, result = re.split(",|->", spec)
    rows = [letter for letter in left if letter not in right]
    batch = _batch(spec)
    count = math.prod(x.shape[left.index(letter)] for letter in rows)
    reads_slowly = x.dtype == jnp.float32 and w.shape[-1] < SHORT and w.size > LARGE
    if platform() != "cpu" or count > FEW or (reads_slowly and count > 16 and not batch):
        return _product(spec, x, w, out_dtype)
    if count == 1 and x.dtype == jnp.bfloat16:
        twice = few_rows_dot(spec, jnp.repeat(x, 2, left.index(rows[0])), w, out_dtype)
        return jax.lax.slice_in_dim(twice, 0, 1, axis=result.index(rows[0]))
    outputs = [letter for letter in right if letter not in left]
    tall = "".join(batch + outputs + rows)
    out = _product(f"{right},{left}->{tall}", w.astype(x.dtype), x, out_dtype)
    return jnp.einsum(f"{tall}->{result}", jax.lax.optimization_barrier(out))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InputsLast:
    """A weight kept for few_rows_dot: array is [outputs... inputs...], where products otherwise have it
    [inputs... outputs...].
    """

    array: jax.Array

    @classmethod
    def of(cls, w, num_inputs):
        """From w, whose first num_inputs axes a product contracts."""
        return cls(jnp.moveaxis(w, range(num_inputs), range(-num_inputs, 0)))

    @classmethod
    def join(cls, weights):
        """One of several of the same inputs: their outputs one after another, on the first axis."""
        return cls(jnp.concatenate([w.array for w in weights]))

    def dot(self, spec, x):
        """`dot` by the spec for the weight as it was, whose contracted axes are x's last and in x's order.

        Both go in as matrices: XLA's CPU compiler copies a weight of more axes before many rows' product.
        """
        left, right, _ = re.split(",|->", spec)
        num_inputs = len(set(left) & set(right))
        rows, outputs = x.shape[:-num_inputs], self.array.shape[:-num_inputs]
        inputs = math.prod(x.shape[-num_inputs:])
        out = few_rows_dot("md,vd->mv", x.reshape(-1, inputs), self.array.reshape(-1, inputs))
        return out.reshape(*rows, *outputs)
