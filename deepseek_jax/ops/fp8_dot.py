"""A Linear layer's product in FP8, as DeepSeek-V3 trains with it (arXiv:2412.19437, section 3.3).

qwix 0.1.8 does not fit. Its differentiable product tiles both operands alike (weights too in 128 x
1, or activations too in 128 x 128). Its quantiser refuses sizes that 128 does not divide, and turns
infinity into NaN.

Tests: tests/ops/test_fp8.py.
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

# An array's letters, and the same letters in three groups
_Letters = tuple[str, tuple[str, str, str]]


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
def _dot(options, x, w):
    return _dot_forward(options, x, w)[0]


def _dot_forward(options, x, w):
    x_axes, w_axes, y_axes = _groups(options.spec)
    # Wgrad gets these FP8 values, not x (section 3.5.2)
    x_blocks = rounded_rows(_matrix(x, *x_axes), power_of_two=options.power_of_two)
    y = block_product(
        x_blocks,
        rounded_weights(_matrix(w, *w_axes), _parts(w_axes, w)),
        out_dtype=options.out_dtype,
        implementation=options.implementation,
    )
    return _tensor(y, *y_axes, _sizes(x_axes, x) | _sizes(w_axes, w)), (x_blocks, w)


def _dot_backward(options, saved, dy):
    (x_blocks, w), (x_axes, w_axes, y_axes) = saved, _groups(options.spec)
    letter_sizes = _sizes(w_axes, w) | _sizes(y_axes, dy)
    num_parts, dy_gmn = _parts(w_axes, w), _matrix(dy, *y_axes)
    product = functools.partial(block_product, implementation=options.implementation)
    # Tiles run along the contracted axis: n in Dgrad, tokens in Wgrad. w's square blocks fit both
    dx = product(
        rounded_rows(dy_gmn, num_parts),
        rounded_transpose(_matrix(w, *w_axes), num_parts),
        runs=num_parts,
        out_dtype=options.x_dtype,
    )
    x_gmk = rounded_columns(x_blocks.values, x_blocks.scale, options.power_of_two)
    dw = product(transposed(x_gmk), rounded_columns(dy_gmn), out_dtype=w.dtype)
    return _tensor(dx, *x_axes, letter_sizes), _tensor(dw, *w_axes, letter_sizes)


_dot.defvjp(_dot_forward, _dot_backward)


def _groups(spec: str) -> tuple[_Letters, _Letters, _Letters]:
    """Parse spec: for x, w and the result, (its letters, the same letters in three groups).

    Each group flattens to one axis of a batched matrix.
    """
    x_letters, w_letters, result_letters = re.split(",|->", spec)
    batch = "".join(c for c in w_letters if c in x_letters and c in result_letters)
    k = "".join(c for c in w_letters if c not in result_letters)
    m = "".join(c for c in x_letters if c not in w_letters)
    n = "".join(c for c in w_letters if c not in x_letters)
    return (x_letters, (batch, m, k)), (w_letters, (batch, k, n)), (result_letters, (batch, m, n))


def _parts(w_axes, w):
    """Return the number of Linear layers with weights side by side in w."""
    _, (_, _, n) = w_axes
    return _sizes(w_axes, w)["z"] if n.startswith("z") and n != "z" else 1


def _sizes(axes, array):
    return dict(zip(axes[0], array.shape, strict=True))


def _matrix(array, letters, groups):
    shape = [math.prod(array.shape[letters.index(c)] for c in group) for group in groups]
    return array.transpose([letters.index(c) for c in "".join(groups)]).reshape(shape)


def _tensor(matrix, letters, groups, letter_sizes):
    order = "".join(groups)
    return matrix.reshape([letter_sizes[c] for c in order]).transpose(
        [order.index(c) for c in letters]
    )
