"""A Linear layer's product in FP8, as DeepSeek-V3 trains with it (arXiv:2412.19437, section 3.3).

qwix 0.1.8 does not fit. Its differentiable product tiles both operands alike (weights too in 128 x
1, or activations too in 128 x 128). Its quantiser refuses sizes that 128 does not divide, and turns
infinity into NaN.
"""

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepseek_jax.ops.fp8_blocks import (
    block_product,
    rounded_columns,
    rounded_rows,
    rounded_transpose,
    rounded_weights,
    transposed,
)


class _Dot(NamedTuple):
    """Options of an fp8_dot: its arguments, and x's dtype."""

    spec: str
    out_dtype: str
    power_of_two: bool
    implementation: str | None
    x_dtype: str


def fp8_dot(
    spec: str,
    x,
    w,
    out_dtype=None,
    *,
    power_of_two: bool = False,
    implementation: str | None = None,
):
    """Compute ops.dot.dot with E4M3 operands in the product and in both of its gradients.

    Fprop and Dgrad round x and dy in tiles of 1 x 128, along k and along n, and w [k n] in blocks
    of 128 x 128. Wgrad rounds x and dy in tiles of 128 tokens. x is saved in FP8 for Wgrad, which
    therefore rounds Fprop's rounded x a second time (section 3.5.2).

    Args:
        spec: An einsum. Letters that x, w and the result all have are batch axes. The other letters
            flatten to three axes. Letters of both x and w become the contracted k, in w's order.
            Letters of x only become the tokens m, and letters of w only become n. If n begins with
            a letter z, w holds the weights of z Linear layers side by side (gate and up), which
            share no tile.
        out_dtype: Dtype of the result. None: x's dtype.
        power_of_two: Round x's scales up to powers of two in Fprop and in Wgrad, so that the second
            rounding is exact except for underflow. Published for the inputs of the Linear after
            attention and of the MoE up-projection.
        implementation: See ops.fp8_blocks.block_product.
    """
    out_dtype = jnp.dtype(out_dtype or x.dtype).name
    return _dot(_Dot(spec, out_dtype, power_of_two, implementation, x.dtype.name), x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(how, x, w):
    return _dot_forward(how, x, w)[0]


def _dot_forward(how, x, w):
    of_x, of_w, of_y = _groups(how.spec)
    # Wgrad gets these FP8 values, not x (section 3.5.2)
    kept = rounded_rows(_matrix(x, *of_x), power_of_two=how.power_of_two)
    y = block_product(
        kept,
        rounded_weights(_matrix(w, *of_w), _parts(of_w, w)),
        out_dtype=how.out_dtype,
        implementation=how.implementation,
    )
    return _tensor(y, *of_y, _sizes(of_x, x) | _sizes(of_w, w)), (kept, w)


def _dot_backward(how, saved, dy):
    (kept, w), (of_x, of_w, of_y) = saved, _groups(how.spec)
    sizes = _sizes(of_w, w) | _sizes(of_y, dy)
    parts, dy_gmn = _parts(of_w, w), _matrix(dy, *of_y)
    product = functools.partial(block_product, implementation=how.implementation)
    # Tiles run along the contracted axis: n in Dgrad, tokens in Wgrad. w's square blocks fit both
    dx = product(
        rounded_rows(dy_gmn, parts),
        rounded_transpose(_matrix(w, *of_w), parts),
        runs=parts,
        out_dtype=how.x_dtype,
    )
    x_gmk = rounded_columns(*kept, how.power_of_two)
    dw = product(transposed(x_gmk), rounded_columns(dy_gmn), out_dtype=w.dtype)
    return _tensor(dx, *of_x, sizes), _tensor(dw, *of_w, sizes)


_dot.defvjp(_dot_forward, _dot_backward)


def _groups(spec):
    """Parse spec: for x, w and the result, (its letters, the same letters in three groups).

    Each group flattens to one axis of a batched matrix.
    """
    left, right, result = re.split(",|->", spec)
    batch = "".join(c for c in right if c in left and c in result)
    k = "".join(c for c in right if c not in result)
    m = "".join(c for c in left if c not in right)
    n = "".join(c for c in right if c not in left)
    return (left, (batch, m, k)), (right, (batch, k, n)), (result, (batch, m, n))


def _parts(of_w, w):
    """Return the number of Linear layers with weights side by side in w."""
    _, (_, _, n) = of_w
    return _sizes(of_w, w)["z"] if n.startswith("z") and n != "z" else 1


def _sizes(of, array):
    return dict(zip(of[0], array.shape, strict=True))


def _matrix(array, letters, groups):
    shape = [math.prod(array.shape[letters.index(c)] for c in group) for group in groups]
    return array.transpose([letters.index(c) for c in "".join(groups)]).reshape(shape)


def _tensor(matrix, letters, groups, sizes):
    order = "".join(groups)
    return matrix.reshape([sizes[c] for c in order]).transpose([order.index(c) for c in letters])
