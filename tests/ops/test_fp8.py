"""FP8 products against numpy loops over tiles, with PyTorch's float8 as the rounding."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.ops import grouped_matmul as grouped
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.fp8 import dequantize, quantize
from deepseek_jax.ops.fp8_blocks import Blocks, block_product
from deepseek_jax.ops.fp8_dot import fp8_dot
from deepseek_jax.ops.fp8_grouped import grouped_fp8
from tests.quick import others_slow

ROW, COLUMN, BLOCK = (1, 128), (128, 1), (128, 128)

# spec, sizes, and by hand: x as b|m k, w as b|k n and the result as b|m n, flattened letter by letter
PRODUCTS = [
    ("md,dv->mv", dict(m=150, d=576, v=192), ("m d", "d v", "m v")),
    ("mf,fd->md", dict(m=24, f=24, d=140), ("m f", "f d", "m d")),
    ("btd,dhx->bthx", dict(b=2, t=90, d=192, h=3, x=48), ("bt d", "d hx", "bt hx")),
    ("md,dzf->mzf", dict(m=7, d=128, z=2, f=256), ("m d", "d zf", "m zf")),
    ("bthu,hud->btd", dict(b=2, t=5, h=8, u=24, d=130), ("bt hu", "hu d", "bt d")),
    ("nbd,ndf->nbf", dict(n=3, b=9, d=192, f=150), ("n|b d", "n|d f", "n|b f")),
    ("bhu,chu->bhc", dict(b=140, h=2, u=24, c=150), ("h|b u", "h|u c", "h|b c")),
    ("tuh,hud->td", dict(t=4, u=10, h=20, d=9), ("t hu", "hu d", "t d")),
]
SPECS = [spec for spec, _, _ in PRODUCTS]


def wide(shape, seed=0):
    """Random float32 over ten decades: a scale of its own for every tile, and E4M3's subnormals."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 10 ** rng.uniform(-6, 4, shape)).astype(np.float32)


def outliers(shape, seed=0):
    """Normal values except in one token and one channel."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x[0] *= 30
    x[..., 1] *= 20
    return x


def rounded(matrix, tile, power_of_two=False):
    """A float32 matrix through E4M3, one tile after another: numpy scales and PyTorch rounds.

    The compiler divides by 448 through its reciprocal: an ulp, that a value halfway between two can feel.
    """
    out, (a, b) = np.zeros_like(matrix), tile
    for i, j in np.ndindex(-(-matrix.shape[0] // a), -(-matrix.shape[1] // b)):
        at = slice(i * a, i * a + a), slice(j * b, j * b + b)
        amax = np.abs(matrix[at]).max()
        scale = amax * np.float32(1 / 448) if amax else np.float32(1)
        if power_of_two:
            scale = np.float32(2.0 ** np.ceil(np.log2(np.float64(scale))))
        q = torch.tensor(matrix[at] / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        out[at] = q.float().numpy() * scale
    return out


def three_products(x, w, dy, power_of_two):
    """Fprop, Dgrad and Wgrad of x [m k], w [k n] and dy [m n], accumulated in float64."""
    x_row, w_block = rounded(x, ROW, power_of_two), rounded(w, BLOCK)
    x_column = rounded(x_row, COLUMN, power_of_two)
    dy_row, dy_column = rounded(dy, ROW), rounded(dy, COLUMN)
    factors = (x_row, w_block), (dy_row, w_block.T), (x_column.T, dy_column)
    return [a.astype(np.float64) @ b.astype(np.float64) for a, b in factors]


def matrices(array, letters, form):
    """`array` as [batch, rows, columns], by the form written in PRODUCTS."""
    batch, _, form = form.rpartition("|")
    rows, columns = form.split(" ")
    array = np.einsum(f"{letters}->{batch}{rows}{columns}", np.asarray(array))
    count = np.prod(array.shape[: len(batch)], dtype=int)
    return array.reshape(count, np.prod(array.shape[len(batch) :][: len(rows)]), -1)


def operands(spec, make):
    """x, w and a cotangent of the result, their letters, and their forms."""
    sizes, forms = next((sizes, forms) for s, sizes, forms in PRODUCTS if s == spec)
    letters = spec.replace("->", ",").split(",")
    arrays = [make([sizes[c] for c in group], seed) for seed, group in enumerate(letters)]
    return arrays, letters, forms


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(product, x, w, dy):
    out, pullback = jax.vjp(product, x, w)
    return out, *pullback(dy.astype(out.dtype))


def assert_close(ours, exact):
    """To float32's rounding of sums of at most 576 terms."""
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=2e-6 * np.abs(exact).max())


CASES = list(itertools.product(SPECS, [False, True], ["dequantized", "interpreted"]))
# One of each kind: of several tiles, in parts, in batches, of rows that end within a tile
QUICK = [(SPECS[i], False, "dequantized") for i in (0, 4, 6)]
QUICK += [(SPECS[i], True, "interpreted") for i in (0, 3, 5)]


@pytest.mark.parametrize("spec, power_of_two, implementation", others_slow(CASES, *QUICK))
def test_all_three_products_are_those_of_a_loop_over_tiles(spec, power_of_two, implementation):
    """Oracle: numpy loops over 1 x 128, 128 x 1 and 128 x 128, PyTorch's rounding, float64 sums."""
    arrays, letters, forms = operands(spec, outliers)
    how = dict(power_of_two=power_of_two, implementation=implementation)
    ours = value_and_gradients(functools.partial(fp8_dot, spec, **how), *arrays)
    each_batch = zip(*map(matrices, arrays, letters, forms), strict=True)
    exact = zip(*(three_products(*batch, power_of_two) for batch in each_batch), strict=True)
    for our, theirs, i in zip(ours, exact, (2, 0, 1), strict=True):  # the result, x, w
        assert_close(matrices(our, letters[i], forms[i]), np.stack(theirs))


@pytest.mark.parametrize("spec", SPECS)
def test_it_stands_in_for_the_unquantised_product(spec):
    """Oracle: ops.dot.dot's shapes and dtypes; bfloat16 x, float32 w, either result."""
    (x, w, dy), _, _ = operands(spec, outliers)
    x = jnp.asarray(x, jnp.bfloat16)
    for out_dtype in (None, jnp.float32):
        ours, theirs = (
            jax.eval_shape(lambda *a, f=f: value_and_gradients(f, *a), x, w, dy)
            for f in (
                lambda x, w: fp8_dot(spec, x, w, out_dtype),  # noqa: B023
                lambda x, w: dot(spec, x, w, out_dtype),  # noqa: B023
            )
        )
        assert [(a.shape, a.dtype) for a in ours] == [(a.shape, a.dtype) for a in theirs]


def test_the_error_is_that_of_four_significant_bits():
    """Oracle: steps of 1/8 err by 1/8 / sqrt(12) rms, over significands log-uniform in [1, 2) 2.65%: sqrt(2)
    times that for a product, up to sqrt(3) where one operand is rounded twice. At worst 1/16 a rounding.
    """
    rng = np.random.default_rng(0)
    x, w, dy = (
        rng.standard_normal(s).astype(np.float32) for s in [(256, 640), (640, 384), (256, 384)]
    )
    ours = value_and_gradients(functools.partial(fp8_dot, "mk,kn->mn"), x, w, dy)
    pairs = (x, w, 2), (dy, w.T, 2), (x.T, dy, 3)
    for our, (a, b, roundings) in zip(ours, pairs, strict=True):
        error = np.asarray(our, np.float64) - a @ b
        assert (
            0.95 * 2**0.5
            < np.linalg.norm(error) / np.linalg.norm(a @ b) / 0.0265
            < 1.05 * roundings**0.5
        )
        worst = (1 + 1 / 16) ** roundings - 1
        assert (np.abs(error) <= worst * (np.abs(a) @ np.abs(b)) + 0.1).all()


ARRAYS = [
    ((256, 384), "plain"),
    ((24, 576), "plain"),
    ((192, 24), "plain"),
    ((1, 1), "plain"),
    ((384, 1152), "interpreted"),
]
ARRAYS = [(*array, power_of_two) for power_of_two in (False, True) for array in ARRAYS]


@pytest.mark.parametrize("tile", [ROW, COLUMN, BLOCK], ids=["row", "column", "block"])
@pytest.mark.parametrize(
    "shape, implementation, power_of_two", others_slow(ARRAYS, ARRAYS[1], ARRAYS[6], ARRAYS[9])
)
def test_a_round_trip_is_that_of_a_loop_over_tiles(shape, implementation, tile, power_of_two):
    """Oracle: the same loop, bit for bit, below a leading axis."""
    x = wide((2, *shape))
    exact = np.stack([rounded(part, tile, power_of_two) for part in x])

    def round_trip(x):
        how = dict(power_of_two=power_of_two, implementation=implementation)
        return dequantize(*quantize(x, tile, **how), tile)

    np.testing.assert_array_equal(jax.jit(round_trip)(x), exact)


def test_the_product_multiplies_with_weights_as_a_checkpoint_stores_them():
    """Oracle: q * weight_scale_inv, read off bit for bit by unit vectors: E4M3 holds 1 at a scale of 2^-8."""
    w = wide((300, 200))
    out = fp8_dot("mk,kn->mn", jnp.eye(300), w, power_of_two=True)
    np.testing.assert_array_equal(out, dequantize(*quantize(w, BLOCK), BLOCK))


def test_power_of_two_scales_make_the_second_rounding_exact():
    """Oracle: Wgrad of Fprop's x itself, in numpy; 1/4 to 4 is normal under either tile's scale."""
    rng = np.random.default_rng(0)
    x = (2 ** rng.uniform(-2, 2, (200, 150)) * rng.choice([-1, 1], (200, 150))).astype(np.float32)
    w, dy = outliers((150, 30), 1), outliers((200, 30), 2)
    _, _, dw = value_and_gradients(
        functools.partial(fp8_dot, "mk,kn->mn", power_of_two=True), x, w, dy
    )
    exact = rounded(x, ROW, True).T.astype(np.float64) @ rounded(dy, COLUMN)
    assert_close(dw, exact)


@pytest.mark.parametrize("amax", [448, 448.0001, 449, 1, 0.875, 0.8751, 2**-125, 3e38])
def test_a_power_of_two_scale_is_the_smallest_that_fits(amax):
    """Oracle: by hand: 448 scale holds the largest magnitude, to float32's rounding; 224 scale does not."""
    _, scale = quantize(jnp.full((1, 1), amax), ROW, power_of_two=True)
    scale = float(scale[0, 0])
    assert np.frexp(scale)[0] == 0.5 and (scale == 2**-126 or 224 * scale < min(amax, 2.0**127))
    assert min(amax, 2.0**127) <= 448 * scale * (1 + 2**-23)


@pytest.mark.parametrize("tile", [ROW, COLUMN, BLOCK], ids=["row", "column", "block"])
@pytest.mark.parametrize("power_of_two", others_slow([False, True], True))
def test_the_kernel_rounds_what_is_rounded_already(tile, power_of_two):
    """Oracle: the plain form of the dequantised values, bit for bit."""
    values, scale = quantize(wide((2, 256, 384)), ROW)
    again = functools.partial(quantize, tile=tile, power_of_two=power_of_two)
    plain = again(dequantize(values, scale, ROW), implementation="plain")
    ours = jax.jit(functools.partial(again, implementation="interpreted"))(values, scale=scale)
    for our, theirs in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(our, theirs)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("compiled", others_slow([False, True], True))
def test_extreme_tiles_stay_finite(compiled, power_of_two):
    """Oracle: by hand. Zeros stay zeros at scale 1; where the scale would be subnormal the error is at most
    2^-125; infinity saturates at 2^127.
    """
    x = np.zeros((6, 256), np.float32)
    x[1, :2] = 1e-45, -1e-38
    x[2, :2] = 1e-36, 2e-36
    x[3, :3] = np.inf, -np.inf, 1e30
    x[4] = -np.inf
    x[5, :2] = np.finfo(np.float32).max, 1
    for tile in (ROW, COLUMN, BLOCK):
        form = functools.partial(quantize, tile=tile, power_of_two=power_of_two)
        values, scale = (jax.jit(form) if compiled else form)(x)
        out = np.asarray(dequantize(values, scale, tile))
        assert np.isfinite(out).all() and (np.asarray(scale) >= 2.0**-126).all()
        np.testing.assert_allclose(out[3:5, 0], [2.0**127, -(2.0**127)], rtol=1e-6)
    values, scale = quantize(x, ROW, power_of_two=power_of_two)
    out = np.asarray(dequantize(values, scale, ROW))
    assert scale[0, 0] == scale[3, 1] == 1 and not out[0].any()
    np.testing.assert_allclose(out[1:3], x[1:3], rtol=1 / 16, atol=2.0**-125)


@pytest.mark.parametrize("implementation", ["dequantized", "interpreted"])
def test_gradients_survive_what_the_product_cannot_hold(implementation):
    """Oracle: by hand. Infinite and zero operands give no NaN, and a NaN is not hidden."""
    x, w, dy = (
        np.zeros((3, 200), np.float32),
        np.zeros((200, 5), np.float32),
        np.ones((3, 5), np.float32),
    )
    x[0, 0], x[1, 0], w[0, 0], dy[2, 0] = np.inf, 1e-42, 1e-3, np.inf
    product = functools.partial(fp8_dot, "mk,kn->mn", implementation=implementation)
    for value in value_and_gradients(product, x, w, dy):
        assert np.isfinite(value).all()
    x[2, 7] = np.nan
    out = np.asarray(product(x, w))
    assert np.isnan(out[2]).all() and np.isfinite(out[:2]).all()


def test_each_of_several_tiles_meets_the_matrix_of_its_group():
    """Oracle: the plain product: two groups of 600 rows, which fill a tile of 512 and a part of another."""
    rng = np.random.default_rng(0)

    def blocks(size, scales):
        values = jnp.asarray(rng.normal(size=size), jnp.float8_e4m3fn)
        return Blocks(values, np.float32(rng.uniform(1, 2, scales)))

    left, right = blocks((2, 600, 128), (2, 600, 1)), blocks((2, 128, 128), (2, 1, 128))
    ours, wanted = (
        block_product(left, right, implementation=form) for form in ("interpreted", "dequantized")
    )
    assert_close(ours, wanted)


def test_small_gradients_keep_their_precision():
    """Oracle: linearity: dy and 2^-30 dy give gradients 2^-30 apart, bit for bit; a floor would end that."""
    arrays = x, w, dy = [outliers(s, i) for i, s in enumerate([(40, 200), (200, 30), (40, 30)])]
    product = functools.partial(fp8_dot, "mk,kn->mn")
    tiny = value_and_gradients(product, x, w, dy * np.float32(2.0**-30))
    for ours, theirs in zip(tiny[1:], value_and_gradients(product, *arrays)[1:], strict=True):
        np.testing.assert_array_equal(ours * 2.0**30, theirs)


@pytest.mark.parametrize(
    "f, implementation",
    others_slow(
        itertools.product([96, 256], ["dequantized", "interpreted"]),
        (96, "dequantized"),
        (256, "interpreted"),
    ),
)
def test_gate_and_up_share_no_tile(f, implementation):
    """Oracle: the products of each alone; as dx their sum, in float32."""
    x, w, dy = (outliers(shape, i) for i, shape in enumerate([(7, 192), (192, 2, f), (7, 2, f)]))
    both = functools.partial(fp8_dot, "md,dzf->mzf", implementation=implementation)
    out, dx, dw = value_and_gradients(both, x, w, dy)
    alone = functools.partial(fp8_dot, "md,df->mf")
    each = [value_and_gradients(alone, x, w[:, z], dy[:, z]) for z in (0, 1)]
    assert_close(out, np.stack([out for out, _, _ in each], 1))
    assert_close(dx, each[0][1] + each[1][1])
    assert_close(dw, np.stack([dw for _, _, dw in each], 1))


EXPERTS, D, F = 5, 192, 140
# Token by token: spread out; one expert with several tiles of 128 rows and a part; two experts idle.
CHOICES = {
    "random": np.random.default_rng(0).integers(EXPERTS, size=(90, 2)),
    "crowded": np.repeat([[3, 3], [1, 4]], [90, 7], axis=0),
}


GROUPED = [
    ("ragged", 8, "crowded"),
    ("ragged", 64, "random"),
    ("pieces", 1, "random"),
    ("pieces", 8, "crowded"),
    ("pieces", 64, "random"),
    ("pieces", 64, "crowded"),
    ("interpreted", 128, "crowded"),
    ("interpreted", 256, "random"),
]
GROUPED = [(*form, power_of_two) for power_of_two in (False, True) for form in GROUPED]


@pytest.mark.parametrize(
    "implementation, block, split, power_of_two",
    others_slow(
        GROUPED,
        ("ragged", 8, "crowded", False),
        ("pieces", 1, "random", False),
        ("pieces", 8, "crowded", True),
        ("pieces", 64, "random", False),
        ("interpreted", 128, "crowded", True),
        ("interpreted", 256, "random", False),
    ),
)
def test_the_grouped_product_is_one_product_an_expert(implementation, block, split, power_of_two):
    """Oracle: the loop over tiles, on each expert's own rows."""
    layout = grouped.expert_layout(CHOICES[split], EXPERTS, block)
    tokens = outliers((len(CHOICES[split]), D), 0)
    rows = np.array(grouped.rows_by_expert(tokens, layout))
    dy = np.array(grouped.rows_by_expert(outliers((len(tokens), F), 2), layout))
    kernel, ends = outliers((EXPERTS, D, F), 1), np.cumsum(layout.rows_per_expert)
    rows[ends[-1] :] = 1e6  # nobody's
    product = functools.partial(
        grouped_fp8,
        rows_per_expert=layout.rows_per_expert,
        block=block,
        implementation=implementation,
        power_of_two=power_of_two,
    )
    out, d_rows, d_kernel = jax.jit(functools.partial(value_and_gradients, product))(
        rows, kernel, dy
    )
    for e, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        exact = three_products(rows[start:end], kernel[e], dy[start:end], power_of_two)
        for ours, theirs in zip(
            (out[start:end], d_rows[start:end], d_kernel[e]), exact, strict=True
        ):
            if theirs.size:
                assert_close(ours, theirs)
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    "f, implementation, block",
    others_slow(
        [(f, *form) for f in (96, 256) for form in (("pieces", 8), ("interpreted", 128))],
        (96, "pieces", 8),
        (256, "interpreted", 128),
    ),
)
def test_an_experts_gate_and_up_share_no_tile(f, implementation, block):
    """Oracle: the grouped product of each alone; as the rows' gradient their sum, in float32."""
    rows_per_expert = block * jnp.array([1, 0, 2, 1, 0])
    rows, dy = outliers((4 * block, D), 0), outliers((4 * block, 2 * f), 2)
    kernel = outliers((EXPERTS, D, 2 * f), 1)
    how = dict(block=block, implementation=implementation)
    product = functools.partial(grouped_fp8, rows_per_expert=rows_per_expert, **how)
    both = functools.partial(product, num_parts=2)
    out, d_rows, d_kernel = value_and_gradients(both, rows, kernel, dy)
    halves = slice(f), slice(f, None)
    each = [value_and_gradients(product, rows, kernel[..., z], dy[..., z]) for z in halves]
    assert_close(out, np.concatenate([out for out, _, _ in each], -1))
    assert_close(d_rows, each[0][1] + each[1][1])
    assert_close(d_kernel, np.concatenate([d for _, _, d in each], -1))


@pytest.mark.parametrize("implementation, block", [("pieces", 8), ("interpreted", 128)])
def test_infinite_rows_and_gradients_give_no_nan_in_the_grouped_product(implementation, block):
    """Oracle: by hand: they saturate at 2^127, and so does all that they meet."""
    rows, dy = np.zeros((4 * block, D), np.float32), np.zeros((4 * block, F), np.float32)
    rows[1, 1], dy[9, 9] = np.inf, -np.inf
    counts = block * jnp.array([1, 0, 2, 1, 0])
    how = dict(block=block, implementation=implementation)
    form = functools.partial(grouped_fp8, rows_per_expert=counts, **how)
    kernel = np.full((EXPERTS, D, F), 1e-3, np.float32)
    for value in jax.jit(functools.partial(value_and_gradients, form))(rows, kernel, dy):
        assert np.isfinite(value).all()


def test_the_grouped_product_keeps_grouped_matmuls_dtypes():
    """Oracle: grouped_matmul's shapes and dtypes, of bfloat16 rows and float32 kernels."""
    rows, kernel = jnp.zeros((64, D), jnp.bfloat16), jnp.zeros((EXPERTS, D, F))
    counts = jnp.array([8, 0, 16, 40, 0])

    def shapes(product):
        form = functools.partial(product, rows_per_expert=counts)
        return jax.eval_shape(
            functools.partial(value_and_gradients, form), rows, kernel, jnp.zeros((64, F))
        )

    ours = shapes(functools.partial(grouped_fp8, block=8))
    theirs = shapes(grouped.grouped_matmul)
    assert [(a.shape, a.dtype) for a in ours] == [(a.shape, a.dtype) for a in theirs]


def test_the_kernel_refuses_experts_that_begin_within_a_tile():
    """Oracle: the message: the argument, what is allowed."""
    rows, kernel = jnp.zeros((64, D)), jnp.zeros((EXPERTS, D, F))
    with pytest.raises(ValueError, match="block=8 is no multiple of 128.*ragged, pieces"):
        grouped_fp8(rows, kernel, jnp.full(EXPERTS, 8), block=8, implementation="interpreted")


def test_the_kernel_refuses_what_its_tiles_do_not_cover():
    """Oracle: the message: the argument, what is allowed."""
    with pytest.raises(ValueError, match=r"multiples of 128, and x is 8 x 300; .*: plain"):
        quantize(jnp.zeros((8, 300)), ROW, implementation="interpreted")
