"""The product of a Linear layer where each device multiplies its own tokens, as a kernel needs."""

import re

import jax
import jax.numpy as jnp

from deepseek_jax.parallel.gather import gathered, split_over
from deepseek_jax.parallel.shard import current_mesh, placed, stored

# The logical axes of a product's letters: axes that split activations, and axes that split only weights
OF_ACTIVATIONS = dict(b="batch", t="seq", h="heads", f="mlp")
OF_WEIGHTS = dict(d="embed", q="q_lora", c="kv_lora", j="index_heads")


def by_token(product, spec: str, x, w):
    """Call product(x, w, out_dtype) on each device's own tokens.

    A device gathers what other devices store of w, except that heads and the widths of MLPs stay
    split; partial results, and partial gradients of x, add up in float32. Without a mesh nothing is
    split. FP8's tiles end with a device's share: if that is no multiple of 128, another mesh rounds
    differently.

    Args:
        product: A function that computes the einsum, with gradients.
        spec: An einsum of x and w in the letters of deepseek_jax/__init__.py. s stands for the
            tokens of whole rows, which attention needs: their heads are split as they are inside
            attention.
        x: Activations.
        w: The weight.

    Returns:
        The result, in x's dtype.
    """
    mesh = current_mesh()
    if mesh is None:
        return product(x, w, x.dtype)
    left, right, result = re.split(",|->", spec)
    table = dict(OF_ACTIVATIONS)
    if "s" in left and mesh.shape["context"] > 1:
        table["h"] = "attention_heads"
    sizes = dict(zip(left + right, x.shape + w.shape, strict=True))

    def place(how, letters, table):
        return how(mesh, [sizes[c] for c in letters], [table.get(c) for c in letters])

    of_x, of_y = (place(placed, letters, table) for letters in (left, result))
    of_w = place(stored, right, table | OF_WEIGHTS)
    kept = {
        c: split_over(mesh, entry) for c, entry in zip(left + result, (*of_x, *of_y), strict=True)
    }
    partial_over = tuple(axis for c in right if c not in result for axis in kept[c])
    dtype = x.dtype
    if any(kept[c] for c in right if c not in left):
        # Each device has a part of x's gradient. The parts are added in x's dtype, so make it float32
        x = x.astype(jnp.float32)

    def local(x, w):
        for dim, letter in enumerate(right):
            over = [axis for axis in split_over(mesh, of_w[dim]) if axis not in kept[letter]]
            # FP8 rounds the master weights themselves
            w = gathered(mesh, w, tuple(over), dim, "float32")
        y = product(x, w, jnp.float32 if partial_over else dtype)
        return jax.lax.psum(y, partial_over).astype(dtype) if partial_over else y

    return jax.shard_map(
        local,
        in_specs=(of_x, of_w),
        out_specs=of_y,
        # Custom gradients do not declare the axes over which they vary
        check_vma=False,
    )(x, w)
