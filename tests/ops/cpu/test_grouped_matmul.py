"""Products expert by expert against loops over experts, for many splits of the rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.cpu import grouped_matmul as cpu

R, D, F, E = 37, 3, 2, 3
CLOSE = dict(rtol=1e-5, atol=1e-5)  # float32 rounding


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in ((R, D), (R, F), (E, D, F))]


def splits():
    """Numbers of rows whose pieces are large, small, both or none, full or not, up to the last row or not."""
    choices = (0, 1, 3, 4, 5, 8, 9, 11, 12, 13, 20, 29, 37)
    triples = np.stack(np.meshgrid(choices, choices, choices), -1).reshape(-1, 3)
    return triples[triples.sum(1) <= R]


def owners(split):
    return np.repeat(np.arange(E + 1), [*split, R - split.sum()])


def test_sizes_have_large_and_small_pieces_here():
    """Oracle: by hand: 37 rows of three experts, a share of 12; few rows; a share of 128; many."""
    given = [(R, E), (3, 8), (8192, 64), (10**6, 8)]
    assert [cpu.piece_sizes(*x) for x in given] == [(8, 2), (3, 2), (64, 16), (256, 64)]


def test_each_row_meets_its_experts_matrix_however_they_are_split(arrays):
    """Oracle: a matrix for every row, by numpy; zeros behind the last expert's."""
    left, _, kernel = arrays
    product = jax.jit(lambda sizes: cpu.product_by_expert("rd,df->rf", left, kernel, sizes))
    with_none = np.concatenate([kernel, np.zeros((1, D, F))])
    for split in splits():
        exact = np.einsum("rd,rdf->rf", left, with_none[owners(split)])
        np.testing.assert_allclose(product(split), exact, **CLOSE, err_msg=str(split))


def test_each_expert_sums_over_its_own_rows_however_they_are_split(arrays):
    """Oracle: a product of every row, by numpy, summed under a mask for each expert."""
    left, right, _ = arrays
    total = jax.jit(lambda sizes: cpu.sum_by_expert(left, right, sizes, "float32"))
    for split in splits():
        chosen = owners(split) == np.arange(E)[:, None]
        exact = np.einsum("er,rd,rf->edf", chosen, left, right)
        np.testing.assert_allclose(total(split), exact, **CLOSE, err_msg=str(split))


def test_bfloat16_rows_are_multiplied_as_such_and_written_in_place(arrays):
    """Oracle: numpy in float64 of the rounded numbers, and 0.4% for the result's rounding; the compiled
    program, in which no part of a bfloat16 array is written: a CPU makes float32 of the whole for that.
    """
    left, right, kernel = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
    split = np.array([12, 0, 20])
    product = jax.jit(lambda sizes: cpu.product_by_expert("rd,df->rf", left, kernel, sizes))
    total = jax.jit(lambda sizes: cpu.sum_by_expert(left, right, sizes, "float32"))
    chosen = owners(split) == np.arange(E)[:, None]
    left_rd, right_rf, kernel_edf = (np.asarray(x, np.float64) for x in (left, right, kernel))
    exact = np.einsum("er,rd,edf->rf", chosen, left_rd, kernel_edf)
    np.testing.assert_allclose(product(split), exact, rtol=2**-8, atol=1e-5)
    exact = np.einsum("er,rd,rf->edf", chosen, left_rd, right_rf)
    np.testing.assert_allclose(total(split), exact, **CLOSE)
    text = product.lower(split).compile().as_text()
    assert re.search(r"u16\[\S+ dynamic-update-slice\(", text)
    assert not re.search(r"bf16\[\S+ dynamic-update-slice\(", text)
