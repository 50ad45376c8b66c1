"""What a remat policy saves on a CPU, against what it saves without a name, and the bits of bfloat16."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from deepseek_jax.ops.cpu.bits import bits
from deepseek_jax.ops.cpu.remat import save_bits

NAME = "saved"
POLICY = jax.checkpoint_policies.save_only_these_names(NAME)


def test_bits_come_back_as_they_were():
    """Oracle: ml_dtypes' own view; NaN, infinity and a subnormal keep their bits. float32 stays as it is."""
    numbers = jnp.array([1.5, -0.0, jnp.nan, jnp.inf, 1e-40], jnp.bfloat16)
    np.testing.assert_array_equal(bits(numbers), np.asarray(numbers).view(np.uint16))
    np.testing.assert_array_equal(bits(bits(numbers).view(jnp.bfloat16)), bits(numbers))
    assert bits(numbers.astype(jnp.float32)).dtype == jnp.float32


def layers(policy, name):
    """The gradient of four layers x -> x + sin(x w) in a loop, of which `name` saves the product."""

    def layer(x, w):
        return x + jnp.sin(name(x @ w.astype(x.dtype))), None

    def value(x, w):
        looped = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        return jax.lax.scan(looped, x, w)[0].astype(jnp.float32).sum()

    return jax.grad(value, (0, 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_passes_on_itself_and_its_gradient(dtype):
    """Oracle: the plain form, which names the numbers themselves, equal to the last bit but for fused
    roundings: 2 of 8 bits in bfloat16.
    """
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(8, 16)), dtype), jnp.asarray(rng.normal(size=(4, 16, 16)))
    ours = jax.jit(layers(POLICY, lambda product: save_bits(product, NAME)))(x, w)
    plain = jax.jit(layers(POLICY, lambda product: checkpoint_name(product, NAME)))(x, w)
    tolerance = {"float32": 1e-6, "bfloat16": 2**-6}[dtype]
    for one, other in zip(ours, plain, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.linalg.norm(one - other) < tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("dtype, stacked", [("float32", "f32"), ("bfloat16", "u16")])
def test_a_policy_saves_it_and_a_loop_writes_it_in_place(dtype, stacked):
    """Oracle: the compiled program: one stack of the layers' four products, bfloat16 ones as their bits."""
    x, w = jnp.ones((8, 24), dtype), jnp.ones((4, 24, 24))
    mixed = layers(
        POLICY, lambda product: save_bits(product[:, :20], NAME) @ jnp.ones((20, 24), product.dtype)
    )
    text = jax.jit(mixed).lower(x, w).compile().as_text()
    assert re.search(stacked + r"\[4,8,20\]\S* dynamic-update-slice\(", text)
    assert set(re.findall(r"\b(\w+)\[4,8,20\]", text)) == {stacked}
