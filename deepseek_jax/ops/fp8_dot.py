"""A Linear layer's product in FP8, as DeepSeek-V3 trains with it (arXiv:2412.19437, section 3.3).

qwix 0.1.8 does not fit: its differentiable product tiles both operands alike (either weights in 128 x 1 or
activations in 128 x 128), and its quantiser refuses sizes that 128 does not divide and turns infinity into
NaN.
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
    """How fp8_dot computes: its arguments, and x's dtype."""

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
    """ops.dot.dot with E4M3 operands in the product and in both of its gradients.

    Letters that x, w and the result all have are batch axes. The other letters flatten to three axes: those
    of both x and w to the contracted k, in w's order; those of x alone to the tokens m; those of w alone to
    n. If n begins with a letter z, w holds the weights of z Linear layers side by side (gate and up), which
    share no tile.
    Fprop and Dgrad round x and dy in tiles of 1 x 128, along k and along n, and w[k n] in blocks of
    128 x 128. Wgrad rounds x and dy in tiles of 128 tokens. x is saved in FP8 for Wgrad, which therefore
    rounds Fprop's rounded x a second time (section 3.5.2).
    power_of_two: round x's scales up to powers of two in Fprop and in Wgrad, so that the second rounding is
    exact except for underflow (published for the inputs of the Linear after attention and of the MoE
    up-projection). implementation: see block_product.
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
    # Tiles run along the contracted axis: n in Dgrad, tokens in Wgrad. w's square blocks serve either
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
    """For x, w and the result: (letters, the same letters in the three groups of a batched matrix's axes)."""
    left, right, result = re.split(",|->", spec)
    batch = "".join(c for c in right if c in left and c in result)
    k = "".join(c for c in right if c not in result)
    m = "".join(c for c in left if c not in right)
    n = "".join(c for c in right if c not in left)
    return (left, (batch, m, k)), (right, (batch, k, n)), (result, (batch, m, n))


def _parts(of_w, w):
    """The number of Linear layers whose weights are side by side in w."""
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
