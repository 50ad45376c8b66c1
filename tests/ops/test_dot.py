"""The one matrix product, for every einsum that the package asks it for."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepseek_jax
from deepseek_jax.ops.dot import FEW, LARGE, SHORT, InputsLast, dot, few_rows_dot, sum_over_rows

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


@pytest.mark.parametrize("spec", SPECS)
def test_bfloat16_gradients_stay_close_to_exact_ones(spec):
    """Oracle: numpy in float64. 8 bits of mantissa: a rounding is at most 0.4%, and three are made."""
    x, w, cotangent = operands(spec)
    _, pullback = jax.vjp(lambda x, w: dot(spec, x, w), x.astype(jnp.bfloat16), w)
    exact = exact_gradients(spec, x, w, cotangent)
    for ours, theirs in zip(pullback(cotangent.astype(jnp.bfloat16)), exact, strict=True):
        assert relative_error(ours, theirs) < 0.01


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
        ("bkmx,bksx->bkms", (2, 64, 3, 32), (2, 48, 3, 32)),  # heads stand behind tokens before
        ("bkms,bksu->bkmu", (2, 64, 3, 48), (2, 48, 3, 32)),
    ],
)
def test_a_cpu_makes_no_float32_of_what_a_bfloat16_product_or_its_gradients_multiply(
    spec, shape, other
):
    """Oracle: the compiled program's own products, where rows are not contiguous too."""
    square = jnp.ones((64, 64), jnp.bfloat16)
    plain = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    if multiplied_dtypes(plain, square, square) != {"bf16"}:
        pytest.skip("XLA multiplies no bfloat16 on this CPU")
    x, w = jnp.ones(shape, jnp.bfloat16), jnp.ones(other, jnp.bfloat16)
    turned = spec.startswith("bk")

    def value(x, w):
        x, w = (jnp.swapaxes(a, 1, 2) if turned else a for a in (x, w))
        return (2 * dot(spec, jnp.sin(x), jnp.sin(w), jnp.float32) ** 2).sum()

    assert multiplied_dtypes(jax.grad(value, (0, 1)), x, w) == {"bf16"}


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


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 1e-5)])
@pytest.mark.parametrize(
    "spec", ["md,mf->df", "bkms,bkmz->bksz", "bkmx,bkms->bksx", "mbd,fbm->bfd"]
)
def test_sums_over_rows_are_those_of_einsum(spec, dtype, tolerance):
    """Oracle: numpy's einsum in float64 of the same numbers; what is left is float32 rounding of sums."""
    left, right, _ = operands(spec, dtype)
    out = jax.jit(lambda left, right: sum_over_rows(spec, left, right))(left, right)
    exact = np.einsum(spec, np.asarray(left, np.float64), np.asarray(right, np.float64))
    assert out.dtype == jnp.float32 and relative_error(out, exact) < tolerance


def test_a_cpu_computes_nothing_turned_round_for_a_float32_weight_gradient():
    """Oracle: the compiled program: no loop has exponentials in it and turns what it makes, as one does for
    the same product by einsum.
    """
    gate, up, cotangent = (jnp.ones((4, 512, width)) for width in (192, 192, 64))

    def loops_that_turn(product):
        def gradient(gate, up, cotangent):
            return product("bmf,bmd->fd", jax.nn.silu(gate) * up, cotangent)

        text = jax.jit(gradient).lower(gate, up, cotangent).compile().as_text()
        loops = text[: text.index("\nENTRY")].split("\n\n")
        return [x for x in loops if " exponential(" in x and (" copy(" in x or " transpose(" in x)]

    assert loops_that_turn(jnp.einsum) and not loops_that_turn(sum_over_rows)


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


def test_a_weight_is_not_copied_for_the_gradient_of_what_it_multiplied():
    """Oracle: the compiled program, which reads the weight where it lies: nothing is copied or transposed."""
    w, cotangent = jnp.ones((48, 2, 16)), jnp.ones((2, 64, 2, 16))

    def gradient(w, cotangent):
        x = jnp.zeros((2, 64, 48))
        return jax.vjp(lambda x: dot("btd,dzf->btzf", x, w), x)[1](cotangent)

    program = jax.jit(gradient).lower(w, cotangent).compile().as_text()
    assert "dot(" in program and not re.search(r" (copy|transpose)\(", program)


@pytest.mark.parametrize("rows", [1, 8, FEW, FEW + 1])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("spec", ["md,vd->mv", "bkmx,bksx->bkms"])
def test_few_rows_and_many_are_multiplied_as_by_einsum(spec, rows, dtype, tolerance):
    """Oracle: numpy's einsum in float64 of the same numbers. Their rounding and, in bfloat16, that of the
    result: 0.4%.
    """
    rng = np.random.default_rng(0)
    sizes = dict(m=rows, d=7, v=11, b=2, k=3, s=5, x=4)
    left, right, _ = re.split(",|->", spec)
    x, w = (jnp.asarray(rng.normal(size=[sizes[c] for c in part]), dtype) for part in (left, right))
    exact = np.einsum(spec, np.asarray(x, np.float64), np.asarray(w, np.float64))
    out = few_rows_dot(spec, x, w)
    assert out.dtype == dtype and relative_error(out, exact) < tolerance
    assert few_rows_dot(spec, x, w, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("rows", [2, FEW])
@pytest.mark.parametrize(
    "spec, num_inputs",
    [("btd,dhx->bthx", 1), ("bthx,hxd->btd", 2), ("btd,dzf->btzf", 1), ("bhx,hxd->bd", 2)],
)
def test_a_weight_kept_inputs_last_multiplies_as_it_did(spec, num_inputs, rows):
    """Oracle: numpy's einsum of the weight as it was, in float64."""
    rng = np.random.default_rng(0)
    sizes = dict(b=rows, t=3, d=7, h=5, x=4, z=2, f=6)
    left, right, _ = re.split(",|->", spec)
    x, w = (rng.normal(size=[sizes[c] for c in part]).astype(np.float32) for part in (left, right))
    exact = np.einsum(spec, np.float64(x), np.float64(w))
    out = jax.jit(lambda x, w: w.dot(spec, x))(x, InputsLast.of(jnp.asarray(w), num_inputs))
    assert relative_error(out, exact) < 1e-5


def test_a_weight_kept_inputs_last_is_not_copied_for_many_rows():
    """Oracle: the compiled program, which reads the weight where it lies: nothing is copied or transposed."""
    x, w = jnp.ones((2, FEW, 48)), InputsLast.of(jnp.ones((48, 8, 16)), 1)
    program = jax.jit(lambda x, w: w.dot("btd,dhx->bthx", x)).lower(x, w).compile().as_text()
    assert "dot(" in program and not re.search(r"(copy|transpose)\(", program)


@pytest.mark.parametrize(
    "dtype, rows, inputs, is_tall",
    [
        ("float32", 8, SHORT - 1, True),
        ("bfloat16", 8, SHORT - 1, True),
        ("float32", 32, SHORT - 1, False),
        ("bfloat16", 32, SHORT - 1, True),
        ("float32", 32, SHORT, True),
        ("float32", 32, LARGE // 512, True),
    ],
)
def test_the_compiler_multiplies_in_the_order_that_it_is_told(dtype, rows, inputs, is_tall):
    """Oracle: the compiled program's own product, whose result is [outputs rows], or [rows outputs] where
    that is the faster one.
    """
    x, w = jnp.ones((rows, inputs), dtype), jnp.ones((512, inputs), dtype)
    program = jax.jit(lambda x, w: 2 * few_rows_dot("md,vd->mv", x, w)).lower(x, w).compile()
    products = re.findall(r"= (f32\[[\d,]+\])\S* dot\(", program.as_text())
    assert products == [f"f32[512,{rows}]" if is_tall else f"f32[{rows},512]"]
