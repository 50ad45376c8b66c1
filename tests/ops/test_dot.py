"""The one matrix product, for every einsum that the package asks it for."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepseek_jax
from deepseek_jax.ops.dot import dot
from tests.quick import others_slow

SOURCES = Path(deepseek_jax.__file__).parent.rglob("*.py")
CALL = r'\b(?:dot|linear|_out)\((?:self\.config, )?\s*"([^"]+)"'
SPECS = sorted({s for path in SOURCES for s in re.findall(CALL, path.read_text())})


def operands(spec, dtype=np.float32):
    """Random x and w, and a cotangent of the result: every letter has a size of its own."""
    sizes = {letter: 2 + i for i, letter in enumerate(sorted(set(spec) - set(",->")))}
    rng = np.random.default_rng(0)
    parts = re.split(",|->", spec)
    return [jnp.asarray(rng.normal(size=[sizes[x] for x in part]), dtype) for part in parts]


def exact_gradients(spec, x, w, cotangent):
    """float64 gradients by numpy: a product's adjoint is the product with the letters moved."""
    left, right, result = re.split(",|->", spec)
    x, w, cotangent = (np.asarray(a, np.float64) for a in (x, w, cotangent))
    dx = np.einsum(f"{result},{right}->{left}", cotangent, w)
    return dx, np.einsum(f"{left},{result}->{right}", x, cotangent)


def relative_error(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


def test_the_specs_of_the_package_were_found():
    """Oracle: by hand, one spec of each room that multiplies."""
    assert {"bkmx,bksx->bkms", "btd,dzf->btzf", "btd,vd->btv", "md,vd->mv"} <= set(SPECS)


@pytest.mark.parametrize("spec", SPECS)
def test_float32_values_and_gradients_are_those_of_einsum(spec):
    """Oracle: numpy's einsum in float64; 1e-5 is float32 rounding over sums of at most 100 terms."""
    x, w, cotangent = operands(spec)
    out, pullback = jax.vjp(lambda x, w: dot(spec, x, w), x, w)
    exact = np.einsum(spec, np.asarray(x, np.float64), np.asarray(w, np.float64))
    assert relative_error(out, exact) < 1e-5
    for ours, theirs in zip(
        pullback(cotangent), exact_gradients(spec, x, w, cotangent), strict=True
    ):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("spec", others_slow(SPECS, *SPECS[::4]))
def test_bfloat16_gradients_stay_close_to_exact_ones(spec):
    """Oracle: numpy in float64. 8 bits of mantissa: a rounding is at most 0.4%, and three are made."""
    x, w, cotangent = operands(spec)
    _, pullback = jax.vjp(lambda x, w: dot(spec, x, w), x.astype(jnp.bfloat16), w)
    exact = exact_gradients(spec, x, w, cotangent)
    for ours, theirs in zip(pullback(cotangent.astype(jnp.bfloat16)), exact, strict=True):
        assert relative_error(ours, theirs) < 0.01


def test_several_devices_gather_nothing_for_a_bfloat16_product_of_their_own_parts():
    """Oracle: the compiled program: attention's heads and rows stay where they are, forward and backward; and
    the gradients of one device, up to bfloat16's rounding of sums in another order.
    """
    sizes, kinds = (2, 4), (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh(sizes, ("data", "tensor"), axis_types=kinds)
    rng = np.random.default_rng(0)
    shapes = [(4, 4, length, 8) for length in (16, 24)]
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)

    def value(x, w):
        return (dot("bkmx,bksx->bkms", x, w, jnp.float32) ** 2).sum()

    alone = jax.jit(jax.grad(value, (0, 1)))(x, w)
    with jax.set_mesh(mesh):
        x, w = (jax.device_put(a, jax.P("data", "tensor")) for a in (x, w))
        program = jax.jit(jax.grad(value, (0, 1))).lower(x, w).compile()
        together = program(x, w)
    assert " dot(" in program.as_text() and "all-gather" not in program.as_text()
    for ours, theirs in zip(together, alone, strict=True):
        assert relative_error(ours, np.asarray(theirs, np.float64)) < 2**-8


def test_each_gradient_has_its_operands_dtype():
    """Oracle: float32 masters get float32 gradients, bfloat16 activations bfloat16 ones."""
    x, w, _ = operands("md,dv->mv")
    x = x.astype(jnp.bfloat16)
    out, pullback = jax.vjp(lambda x, w: dot("md,dv->mv", x, w, jnp.float32), x, w)
    assert out.dtype == jnp.float32
    dx, dw = pullback(out)
    assert dx.dtype == jnp.bfloat16 and dw.dtype == jnp.float32
    assert dot("md,dv->mv", x, w).dtype == jnp.bfloat16


def test_bfloat16_products_accumulate_in_float32():
    """Oracle: by hand: 1024 ones add up to 1024, where bfloat16 sums would stick at 256."""
    ones = jnp.ones((1, 1024), jnp.bfloat16)
    assert dot("md,nd->mn", ones, ones, jnp.float32)[0, 0] == 1024
