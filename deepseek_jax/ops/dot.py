"""The one matrix product: low-precision operands, float32 sums, gradients at the same precision."""

import functools
import re

import jax
import jax.numpy as jnp

from deepseek_jax.ops.cpu import dot as cpu
from deepseek_jax.ops.platform import choose, precision_of


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def dot(spec, x, w, out_dtype=None):
    """Contract x with w as jnp.einsum does, at x's precision, accumulating in float32.

    float32 operands are not rounded, on any machine.

    The gradients are products at x's precision too. (Autodiff of a bfloat16 product with a float32
    result would run them in float32.) Each gradient arrives in its operand's dtype, so that float32
    master weights get float32 gradients.

    Args:
        spec: An einsum of two operands. Every letter of an operand stands in the other operand or
            in the result.
        x: Any float dtype. This is the compute dtype.
        w: Any float dtype, cast to x's.
        out_dtype: Dtype of the result. None: x's dtype.
    """
    return _product(spec, x, w, out_dtype)


def _product(spec, x, w, out_dtype):
    return einsum(spec, x, w.astype(x.dtype)).astype(out_dtype or x.dtype)


def _forward(spec, x, w, out_dtype):
    # Not a call of `dot`: a remat policy sees no product inside a custom derivative, and would
    # recompute all of them
    return _product(spec, x, w, out_dtype), (x, w)


def _backward(spec, out_dtype, saved, cotangent):
    x, w = saved
    # An operand's gradient: the cotangent times the other operand, with the letters moved
    x_letters, w_letters, result_letters = re.split(",|->", spec)
    cotangent = cotangent.astype(x.dtype)
    dx = einsum(f"{result_letters},{w_letters}->{x_letters}", cotangent, w.astype(x.dtype))
    dw = einsum(f"{x_letters},{result_letters}->{w_letters}", x, cotangent)
    return dx.astype(x.dtype), dw.astype(w.dtype)


dot.defvjp(_forward, _backward)


def einsum(spec, left, right):
    """Compute jnp.einsum of two operands of one dtype, into float32."""
    return choose("einsum", plain=_einsum, matrices=cpu.einsum)(spec, left, right)


def _einsum(spec, left, right):
    return jnp.einsum(
        spec, left, right, precision=precision_of(left), preferred_element_type=jnp.float32
    )
