"""Megablox kernels, emulated, against loops over experts."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.grouped_matmul import grouped_matmul
from deepseek_jax.ops.pallas import grouped_matmul as pallas

R, D, F = 90, 40, 24
SIZES = np.array([33, 0, 7, 30])
ENDS = np.cumsum(SIZES)


def operands(seed=0):
    rng = np.random.default_rng(seed)
    rows, kernel = rng.normal(size=(R, D)), rng.normal(size=(len(SIZES), D, F))
    return rows.astype(np.float32), kernel.astype(np.float32)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of rows of several experts, the last one in part; columns that no tile divides."""
    monkeypatch.setattr(pallas, "TILES", (16, 32, 16))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_tile_of_rows_meets_the_expert_of_each(transposed):
    """Oracle: a numpy loop over experts in float64. Rows past the experts' own, NaN here, reach none."""
    rows, kernel = operands()
    rows[SIZES.sum() :] = np.nan
    given = np.swapaxes(kernel, 1, 2) if transposed else kernel
    out = pallas.product(rows, given, SIZES, transposed, interpret=True)
    for e, (end, size) in enumerate(zip(ENDS, SIZES, strict=True)):
        exact = rows[end - size : end].astype(float) @ kernel[e]
        np.testing.assert_allclose(out[end - size : end], exact, rtol=1e-5, atol=1e-5)


def test_products_of_bfloat16_are_summed_in_float32():
    """Oracle: the float64 product of the rounded operands, rounded once: half a unit in its last place."""
    rows, kernel = (jnp.asarray(x, jnp.bfloat16) for x in operands())
    out = grouped_matmul(rows, kernel, SIZES, implementation="interpreted")
    assert out.dtype == jnp.bfloat16
    rows, kernel = (np.asarray(x, float) for x in (rows, kernel))
    for e, (end, size) in enumerate(zip(ENDS, SIZES, strict=True)):
        exact = rows[end - size : end] @ kernel[e]
        error = np.abs(np.asarray(out[end - size : end], float) - exact)
        assert (error <= 2.0**-8 * np.abs(exact) + 1e-5).all()
