"""Products as a CPU runs them best, against the plain form and numpy."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.cpu import dot as cpu
from deepseek_jax.ops.decoding import prepare
from deepseek_jax.ops.dot import dot, einsum
from deepseek_jax.ops.platform import FORMS
from tests.ops.test_dot import SPECS, operands, relative_error
from tests.quick import others_slow


def products(spec):
    """The product of a spec, and those of its two gradients."""
    left, right, result = re.split(",|->", spec)
    return spec, f"{result},{right}->{left}", f"{left},{result}->{right}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", sorted({each for spec in SPECS for each in products(spec)}))
def test_values_are_those_of_the_plain_form(spec, dtype):
    """Oracle: jnp.einsum of the same numbers in float64; what is left is float32's rounding of sums."""
    left, right, _ = operands(spec, dtype)
    out = jax.jit(functools.partial(cpu.einsum, spec))(left, right)
    exact = np.einsum(spec, np.asarray(left, np.float64), np.asarray(right, np.float64))
    assert out.dtype == jnp.float32 and out.shape == exact.shape
    assert relative_error(out, exact) < 1e-5


# That of two axes of heads; the products of each gradient are among those above
@pytest.mark.parametrize("spec", others_slow(SPECS, SPECS[0], SPECS[-1]))
def test_gradients_are_those_of_the_plain_form(monkeypatch, spec):
    """Oracle: the plain form's gradients of the same bfloat16 numbers; a rounding of the results is 0.4%."""
    x, w, cotangent = operands(spec, jnp.bfloat16)

    def gradients():
        return jax.vjp(functools.partial(dot, spec), x, w)[1](cotangent)

    ours = gradients()
    monkeypatch.setitem(FORMS, "einsum", {"any": "plain"})
    for one, other in zip(ours, gradients(), strict=True):
        assert relative_error(one, np.asarray(other, np.float64)) < 2**-8


def multiplied_dtypes(function, *arrays):
    """The dtypes of all that is multiplied in the compiled program."""
    text = jax.jit(function).lower(*arrays).compile().as_text()
    dtypes = dict(re.findall(r"%([\w.\-]+) = (\w+)\[", text))
    found = re.findall(r" dot\(%([\w.\-]+), %([\w.\-]+)\)", text)
    return {dtypes[name] for pair in found for name in pair}


@pytest.mark.parametrize(
    "spec, shape, other",
    [
        ("bts,sd->btd", (2, 64, 96), (96, 48)),
        ("bthx,hxd->btd", (2, 64, 3, 32), (3, 32, 48)),
        ("bkms,bkmu->bksu", (2, 3, 64, 48), (2, 3, 64, 32)),  # a gradient in itself
    ],
)
def test_a_cpu_makes_no_float32_of_what_a_bfloat16_product_or_its_gradients_multiply(
    spec, shape, other
):
    """Oracle: the compiled program's own products, of operands that it makes."""
    square = jnp.ones((64, 64), jnp.bfloat16)
    plain = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    if multiplied_dtypes(plain, square, square) != {"bf16"}:
        pytest.skip("XLA multiplies no bfloat16 on this CPU")
    x, w = jnp.ones(shape, jnp.bfloat16), jnp.ones(other, jnp.bfloat16)

    def value(x, w):
        return (2 * dot(spec, jnp.sin(x), jnp.sin(w), jnp.float32) ** 2).sum()

    assert multiplied_dtypes(jax.grad(value, (0, 1)), x, w) == {"bf16"}


def test_a_weight_is_not_copied_for_the_gradient_of_what_it_multiplied():
    """Oracle: the compiled program, which reads the weight where it lies: nothing is copied or transposed."""
    w, cotangent = jnp.ones((48, 2, 16)), jnp.ones((2, 64, 2, 16))

    def gradient(w, cotangent):
        x = jnp.zeros((2, 64, 48))
        return jax.vjp(lambda x: dot("btd,dzf->btzf", x, w), x)[1](cotangent)

    program = jax.jit(gradient).lower(w, cotangent).compile().as_text()
    assert "dot(" in program and not re.search(r" (copy|transpose)\(", program)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("more", [None, 0, 1])
def test_few_rows_and_many_are_multiplied_as_by_the_plain_form(more, dtype):
    """Oracle: numpy's einsum in float64 of the same numbers: float32's rounding of 7 terms is left."""
    rows = 1 if more is None else cpu.FEW[dtype] + more
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((rows, 7), (11, 7)))
    out = cpu.einsum("md,vd->mv", x, w)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    assert out.dtype == jnp.float32 and relative_error(out, exact) < 1e-5


@pytest.mark.parametrize("rows", others_slow([2, 65], 65))
@pytest.mark.parametrize(
    "spec, num_inputs",
    [("btd,dhx->bthx", 1), ("bthx,hxd->btd", 2), ("btd,dzf->btzf", 1), ("bhx,hxd->bd", 2)],
)
def test_a_prepared_weight_multiplies_as_it_did(spec, num_inputs, rows):
    """Oracle: the plain form of the weight as it was; 1e-5 is float32's rounding of sums of at most 20."""
    rng = np.random.default_rng(0)
    sizes = dict(b=rows, t=3, d=7, h=5, x=4, z=2, f=6)
    left, right, _ = re.split(",|->", spec)
    x, w = (
        jnp.asarray(rng.normal(size=[sizes[c] for c in part]), jnp.float32)
        for part in (left, right)
    )
    out = jax.jit(functools.partial(dot, spec))(x, prepare(w, num_inputs))
    exact = jnp.einsum(spec, x, w, preferred_element_type=jnp.float32)
    assert relative_error(out, np.asarray(exact, np.float64)) < 1e-5


def test_a_prepared_weight_is_not_copied_for_many_rows():
    """Oracle: the compiled program, which reads the weight where it lies: nothing is copied or transposed."""
    x, w = jnp.ones((2, 64, 48)), prepare(jnp.ones((48, 8, 16)), 1)
    product = functools.partial(dot, "btd,dhx->bthx")
    program = jax.jit(product).lower(x, w).compile().as_text()
    assert "dot(" in program and not re.search(r"(copy|transpose)\(", program)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("more", [0, 1])
def test_the_compiler_multiplies_few_rows_by_the_weight_first(dtype, more):
    """Oracle: the compiled program's own product, [outputs rows], or [rows outputs] of many."""
    rows = cpu.FEW[dtype] + more
    x, w = jnp.ones((rows, 96), dtype), jnp.ones((512, 96), dtype)
    program = jax.jit(lambda x, w: 2 * einsum("md,vd->mv", x, w)).lower(x, w).compile()
    products = re.findall(r"= (f32\[[\d,]+\])\S* dot\(", program.as_text())
    assert products == [f"f32[{rows},512]" if more else f"f32[512,{rows}]"]
