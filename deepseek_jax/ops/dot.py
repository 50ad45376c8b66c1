"""The one matrix product: low precision in, float32 accumulation, gradients at the same precision."""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.ops.platform import platform


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
    out = jnp.einsum(spec, x, w.astype(x.dtype), preferred_element_type=jnp.float32)
    return out.astype(out_dtype or x.dtype)


def _forward(spec, x, w, out_dtype):
    return _product(spec, x, w, out_dtype), (x, w)  # in the open: a remat policy looks for products


def _backward(spec, out_dtype, saved, cotangent):
    x, w = saved
    operands, result = spec.split("->")
    left, right = operands.split(",")
    cotangent = cotangent.astype(x.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dx = product(f"{result},{right}->{left}", cotangent, w.astype(x.dtype))
    if platform() == "cpu":  # it lacks bfloat16 into float32 in some of these layouts, at no gain
        x, cotangent = x.astype(jnp.float32), cotangent.astype(jnp.float32)
    dw = product(f"{left},{result}->{right}", x, cotangent)
    return dx.astype(saved[0].dtype), dw.astype(w.dtype)


dot.defvjp(_forward, _backward)
