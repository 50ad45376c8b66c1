"""CPU devices that compute as another machine would."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental import pallas as pl

from deepseek_jax.ops import platform, rehearsal
from deepseek_jax.ops.attention import attend_latent
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.fp8_dot import fp8_dot
from deepseek_jax.ops.grouped_matmul import grouped_matmul
from deepseek_jax.ops.platform import form_of, forms_taken, size_of
from tests.ops.test_attention import normal


@pytest.fixture(autouse=True)
def this_machine_again():
    yield
    rehearsal.rehearse(None)


def rounded(x, machine):
    """x as the machine's default product reads it, in numpy."""
    if platform.MACHINES[machine] == "tpu":
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)
    # To nearest, a tie to the even number: 13 of 23 bits go
    bits = x.view(np.uint32)
    kept = bits + np.uint32(2**12 - 1) + (bits >> np.uint32(13) & np.uint32(1))
    return (kept & ~np.uint32(2**13 - 1)).view(np.float32)


LEFT, RIGHT = (np.asarray(normal(seed, 32, 32), np.float32) for seed in range(2))


def in_a_kernel(left, right):
    """The product of one interpreted Pallas kernel."""

    def kernel(left, right, out):
        out[...] = jnp.dot(left[...], right[...], preferred_element_type=jnp.float32)

    return pl.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct((32, 32), jnp.float32), interpret=True
    )(left, right)


PRODUCTS = {
    "einsum": lambda x, w: jnp.einsum("md,df->mf", x, w),
    "matmul": jnp.matmul,
    "ragged": lambda x, w: jax.lax.ragged_dot(x, w[None], jnp.array([32])),
    "kernel": in_a_kernel,
}


@pytest.mark.parametrize("machine", platform.MACHINES)
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_default_product_rounds_its_operands(machine, product):
    """Oracle: numpy, of operands that numpy has rounded; without a rehearsal, of operands as they are."""
    rehearsal.rehearse(machine)
    found = jax.jit(PRODUCTS[product])(LEFT, RIGHT)
    wanted = rounded(LEFT, machine) @ rounded(RIGHT, machine)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert abs(wanted - LEFT @ RIGHT).max() > 1e-3
    rehearsal.rehearse(None)
    np.testing.assert_allclose(jax.jit(PRODUCTS[product])(LEFT, RIGHT), LEFT @ RIGHT, atol=1e-5)


@pytest.mark.parametrize("machine", ["v5e", "gpu"])
def test_an_exact_product_keeps_its_operands(machine):
    """Oracle: numpy, of the product and of its gradients; ours is exact on every machine."""
    rehearsal.rehearse(machine)
    highest = jax.lax.Precision.HIGHEST
    found = jax.jit(lambda x, w: jnp.matmul(x, w, precision=highest))(LEFT, RIGHT)
    np.testing.assert_allclose(found, LEFT @ RIGHT, atol=1e-5)
    out, pull = jax.vjp(lambda x, w: dot("md,df->mf", x, w), LEFT, RIGHT)
    np.testing.assert_allclose(out, LEFT @ RIGHT, atol=1e-5)
    out = np.asarray(out)
    for ours, wanted in zip(pull(out), (out @ RIGHT.T, LEFT.T @ out), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-4)


def test_products_of_bfloat16_stay_as_they_are():
    """Oracle: the same product without a rehearsal, to the bit."""
    x, w = LEFT.astype(jnp.bfloat16), RIGHT.astype(jnp.bfloat16)

    def product(x, w):
        return jnp.matmul(x, w, preferred_element_type=jnp.float32)

    here = jax.jit(product)(x, w)
    rehearsal.rehearse("v5p")
    np.testing.assert_array_equal(jax.jit(product)(x, w), here)


def test_kernels_run_in_their_emulations_and_are_named():
    """Oracle: the CPU's own forms, of bfloat16; the names that FORMS has for a TPU."""
    rows, kernel = (
        normal(i, *s).astype("bfloat16") for i, s in enumerate([(256, 128), (2, 128, 128)])
    )
    q, latents = (
        normal(i, *s).astype("bfloat16") for i, s in enumerate([(1, 16, 192), (1, 128, 192)])
    )
    counts, mask = jnp.array([128, 128]), jnp.ones((1, 128), bool)

    def both():
        latent = attend_latent(q, latents, kv_lora_rank=128, scale=0.1, mask=mask)
        return grouped_matmul(rows, kernel, counts), latent

    here = both()
    rehearsal.rehearse("v5p")
    for ours, wanted in zip(both(), here, strict=True):
        np.testing.assert_allclose(
            ours.astype("float32"), wanted.astype("float32"), rtol=0.02, atol=0.02
        )
    assert forms_taken() == "attend_latent=kernel, grouped_matmul=megablox"
    # float32 takes no kernel
    grouped_matmul(rows.astype("float32"), kernel, counts)
    assert "grouped_matmul=megablox, grouped_matmul=ragged" in forms_taken()


def test_each_machine_has_its_forms_and_sizes():
    """Oracle: the tables of ops.platform, read by hand."""
    x, w = (normal(i, 128, 128).astype("bfloat16") for i in range(2))
    for machine, operands in {"v5e": "bfloat16", "tpu7x": "float8_e4m3fn"}.items():
        rehearsal.rehearse(machine)
        assert size_of("longest_whole_row") == 1024 and form_of("prepare") == "as_it_is"
        fp8_dot("md,df->mf", x, w)
        assert f"block_product=kernel, fp8_operands={operands}" in forms_taken()
    rehearsal.rehearse("gpu")
    assert form_of("grouped_matmul") == "ragged" and size_of("attention_block") == 512
    rehearsal.rehearse(None)
    assert size_of("longest_whole_row") == 128 and not platform.taken


def test_machines_that_cannot_be_rehearsed_are_named(monkeypatch):
    """Oracle: the words a reader needs."""
    with pytest.raises(
        ValueError, match="machine='v4' cannot be rehearsed; it must be one of v5e, "
    ):
        rehearsal.rehearse("v4")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(ValueError, match="this process has tpus; set JAX_PLATFORMS=cpu"):
        rehearsal.rehearse("v5e")
    assert platform.rehearsed is None
