"""The product of a Linear layer where each device multiplies its own tokens by a gathered weight."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from deepseek_jax.parallel.gather import gathered, split_over
from deepseek_jax.parallel.shard import current_mesh, placed, stored

# The logical axes of a product's letters: axes that split activations, and axes that split only weights
OF_ACTIVATIONS = dict(b="batch", t="seq", h="heads", f="mlp")
OF_WEIGHTS = dict(d="embed", q="q_lora", c="kv_lora", j="index_heads")


def by_token(
    product: Callable, spec: str, x: jax.Array, w: jax.Array, gathered_dtype: str
) -> jax.Array:
    """Call product(x, w, out_dtype) on each device's own tokens.

    A device gathers what other devices store of w, except that heads and the widths of MLPs stay
    split; partial results, and partial gradients of x, add up in float32. XLA alone would make some
    of these gathers out of all-reduces, which send twice the bytes. Without a mesh nothing is
    split. FP8's tiles end with a device's share: if that is no multiple of 128, another mesh rounds
    differently.

    Args:
        product: A function that computes the einsum, with gradients.
        spec: An einsum of x and w in the letters of deepseek_jax/__init__.py. s stands for the
            tokens of whole rows, which attention needs: their heads are split as they are inside
            attention.
        x: Activations.
        w: The weight.
        gathered_dtype: The dtype in which it is gathered, see gather.gathered.

    Returns:
        The result, in x's dtype.
    """
    mesh = current_mesh()
    if mesh is None:
        return product(x, w, x.dtype)
    x_letters, w_letters, result_letters = re.split(",|->", spec)
    logical_axes = dict(OF_ACTIVATIONS)
    if "s" in x_letters and mesh.shape["context"] > 1:
        logical_axes["h"] = "attention_heads"
    letter_sizes = dict(zip(x_letters + w_letters, x.shape + w.shape, strict=True))

    def spec_of(find_spec, letters, logical_axes):
        return find_spec(
            mesh, [letter_sizes[c] for c in letters], [logical_axes.get(c) for c in letters]
        )

    x_spec, y_spec = (
        spec_of(placed, letters, logical_axes) for letters in (x_letters, result_letters)
    )
    w_spec = spec_of(stored, w_letters, logical_axes | OF_WEIGHTS)
    split_axes = {
        c: split_over(mesh, entry)
        for c, entry in zip(x_letters + result_letters, (*x_spec, *y_spec), strict=True)
    }
    partial_axes = tuple(
        axis for c in w_letters if c not in result_letters for axis in split_axes[c]
    )
    dtype = x.dtype
    if any(split_axes[c] for c in w_letters if c not in x_letters):
        # Each device has a part of x's gradient. The parts are added in x's dtype, so make it float32
        x = x.astype(jnp.float32)

    def local(x, w):
        for dim, letter in enumerate(w_letters):
            gather_axes = [
                axis for axis in split_over(mesh, w_spec[dim]) if axis not in split_axes[letter]
            ]
            w = gathered(mesh, w, tuple(gather_axes), dim, gathered_dtype)
        y = product(x, w, jnp.float32 if partial_axes else dtype)
        return jax.lax.psum(y, partial_axes).astype(dtype) if partial_axes else y

    return jax.shard_map(
        local,
        in_specs=(x_spec, w_spec),
        out_specs=y_spec,
        # Custom gradients do not declare the axes over which they vary
        check_vma=False,
    )(x, w)
