"""The expert layout and the grouped product against loops over tokens and experts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import grouped_matmul as grouped
from deepseek_jax.ops.pallas import grouped_matmul as pallas
from tests.quick import others_slow
from tests.tpu import TOPOLOGIES, compiled

M, A, E, D, F = 20, 2, 6, 5, 4
# Token by token: spread out, all of a token's choices on one expert, and experts 0 and 5 idle.
RNG = np.random.default_rng(0)
SPLITS = {
    "random": np.stack([RNG.permutation(E)[:A] for _ in range(M)]),
    "one expert": np.full((M, A), 3),
    "idle experts": np.stack([1 + RNG.permutation(4)[:A] for _ in range(M)]),
}
IMPLEMENTATIONS = [(name, block) for name in ("pieces", "ragged") for block in (1, 2, 8, 64)]
# The kernel for TPU, emulated
IMPLEMENTATIONS += [("interpreted", 1), ("interpreted", 8)]
# Each implementation, with blocks that experts fill and do not
QUICK = [("pieces", 1), ("pieces", 8), ("ragged", 2), ("interpreted", 8)]
CLOSE = dict(rtol=1e-5, atol=1e-5)  # float32 rounding


def inputs():
    rng = np.random.default_rng(1)
    shapes = (M, D), (E, D, F), (M, A)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def mixture(x, kernel, weights, experts, implementation, block):
    """Lay out, weigh, multiply, sum: a layer of experts with one matrix each."""
    layout = grouped.expert_layout(experts, E, block)
    rows = grouped.rows_by_expert(x, layout) * grouped.weight_of_rows(weights, layout)[:, None]
    out = grouped.grouped_matmul(
        rows, kernel, layout.rows_per_expert, implementation=implementation
    )
    return grouped.summed(out, layout)


def dense(x, kernel, weights, experts):
    """Every expert on every token, the chosen ones selected by one-hot weights."""
    weight_me = (jax.nn.one_hot(experts, E) * weights[..., None]).sum(1)
    return jnp.einsum("md,edf,me->mf", x, kernel, weight_me)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("implementation, block", others_slow(IMPLEMENTATIONS, *QUICK))
def test_every_token_reaches_all_its_experts(split, implementation, block):
    """Oracle: a numpy loop over tokens and choices, in float64."""
    experts, (x, kernel, weights) = SPLITS[split], inputs()
    exact = np.zeros((M, F))
    for token, choice in np.ndindex(M, A):
        exact[token] += weights[token, choice] * (
            x[token].astype(float) @ kernel[experts[token, choice]]
        )
    ours = jax.jit(mixture, static_argnums=(4, 5))
    np.testing.assert_allclose(
        ours(x, kernel, weights, experts, implementation, block), exact, **CLOSE
    )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("implementation, block", others_slow(IMPLEMENTATIONS, *QUICK))
def test_gradients_are_those_of_the_dense_form(split, implementation, block):
    """Oracle: autodiff of every expert on every token under one-hot weights."""
    experts, arguments = SPLITS[split], inputs()
    probe = np.random.default_rng(2).normal(size=(M, F)).astype(np.float32)

    def gradients(form, *more):
        value = lambda *a: (form(*a, *more) * probe).sum()  # noqa: E731
        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*arguments, experts)

    for ours, theirs in zip(
        gradients(mixture, implementation, block), gradients(dense), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


@pytest.mark.parametrize("implementation", ["ragged", "interpreted", "pieces"])
@pytest.mark.parametrize("rows", others_slow([40, 32, 33], 33))
def test_the_product_over_rows_is_each_experts_own(monkeypatch, implementation, rows):
    """Oracle: a numpy loop over experts in float64: an idle one, edges within a tile, rows behind all
    experts' that count for none, and a last tile in part; the kernel for TPU emulated. In bfloat16 the same,
    rounded once.
    """
    monkeypatch.setattr(pallas, "TILES_OVER_ROWS", (16, 8, 8))
    rng = np.random.default_rng(3)
    left, right = (rng.normal(size=(rows, n)).astype(np.float32) for n in (16, 24))
    sizes = np.array([8, 0, 13, 11])
    ends = np.cumsum(sizes)
    exact = [
        left[e - n : e].astype(float).T @ right[e - n : e] for e, n in zip(ends, sizes, strict=True)
    ]
    ours, rounded = (
        grouped.product_over_rows(left, right, sizes, dtype, implementation=implementation)
        for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(ours, exact, **CLOSE)
    np.testing.assert_array_equal(rounded, ours.astype("bfloat16"))


def check_layout(experts, n_routed_experts, block):
    """Assert, by loops, that the layout holds each choice once, by expert, in whole blocks."""
    layout = [np.asarray(a) for a in grouped.expert_layout(experts, n_routed_experts, block)]
    token_of_row, row_of_choice, rows_per_expert = layout
    assert len(token_of_row) % block == 0 and rows_per_expert.sum() <= len(token_of_row)
    assert len(set(row_of_choice.ravel())) == experts.size
    ends = np.cumsum(rows_per_expert)
    for (token, _), row in np.ndenumerate(row_of_choice):
        assert token_of_row[row] == token
    for (token, choice), row in np.ndenumerate(row_of_choice):
        assert np.searchsorted(ends, row, side="right") == experts[token, choice]
    counts = np.bincount(experts.ravel(), minlength=n_routed_experts)
    np.testing.assert_array_equal(rows_per_expert, -(-counts // block) * block)
    assert (token_of_row == len(experts)).sum() == len(token_of_row) - experts.size


@pytest.mark.parametrize("block", [1, 2, 4])
def test_no_split_overflows_the_layout(block):
    """Oracle: every way to send 4 choices to 3 experts, all 81, and the layout's own promises by loops."""
    for flat in itertools.product(range(3), repeat=4):
        check_layout(np.array(flat).reshape(4, 1), 3, block)


@pytest.mark.parametrize(
    "m, a, e, block", [(7, 2, 4, 8), (40, 3, 5, 8), (3, 2, 64, 4), (65, 1, 1, 64)]
)
def test_the_worst_split_fits(m, a, e, block):
    """Oracle: as many experts as can be left one row over a whole block, which pads the most."""
    experts = np.zeros(m * a, int)
    spread = min(e, m * a)
    experts[:spread] = np.arange(spread)
    check_layout(experts.reshape(m, a), e, block)


def test_a_layout_by_capacity_has_as_many_rows_for_each_group():
    """Oracle: by hand: groups of 2, 0 and 3 choices in four rows each; token 5 is none."""
    layout = grouped.capacity_layout(np.array([[2], [0], [2], [0], [2]]), 3, 4)
    token_of_row, row_of_choice, rows = map(np.asarray, layout)
    np.testing.assert_array_equal(token_of_row, [1, 3, 5, 5, 5, 5, 5, 5, 0, 2, 4, 5])
    np.testing.assert_array_equal(row_of_choice[:, 0], [8, 0, 9, 1, 10])
    np.testing.assert_array_equal(rows, [4, 4, 4])


def test_the_layouts_shapes_depend_on_shapes_alone():
    """Oracle: one compilation serves every split."""
    layout = jax.jit(grouped.expert_layout, static_argnums=(1, 2))
    shapes = {tuple(a.shape for a in layout(experts, E, 8)) for experts in SPLITS.values()}
    assert len(shapes) == 1 and layout._cache_size() == 1


def test_blocks_are_about_an_experts_share():
    """Oracle: by hand: the largest power of two up to choices / experts, 1 to 8."""
    given = [(16, 8), (100, 8), (7, 8), (1, 256), (10**6, 8)]
    assert [grouped.block_size(*x) for x in given] == [2, 8, 1, 1, 8]
    with jax.default_device("tpu"):
        assert [grouped.block_size(*x) for x in given] == [1] * 5


def test_rows_on_a_tpu_are_whole_tiles():
    """Oracle: by hand: of 512 rows, of 128 where there are few."""
    with jax.default_device("tpu"):
        found = [grouped.whole_tiles(rows) for rows in (1, 129, 4095, 4096, 4097)]
    assert found == [128, 256, 4096, 4096, 4608]
    assert [grouped.whole_tiles(rows) for rows in (3, 129)] == [3, 129]


@pytest.mark.parametrize("implementation", ["pieces", "ragged"])
def test_gradients_arrive_in_their_operands_dtypes(implementation):
    """Oracle: bfloat16 activations, float32 masters and float32 weights of the router."""
    x, kernel, weights = inputs()

    def value(x, kernel, weights):
        return (
            mixture(x, kernel, weights, SPLITS["random"], implementation, 8)
            .astype(jnp.float32)
            .sum()
        )

    dtypes = [g.dtype for g in jax.grad(value, (0, 1, 2))(x.astype(jnp.bfloat16), kernel, weights)]
    assert dtypes == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_gradients_of_a_kernel_are_kernels():
    """Oracle: the traced program: a product, the one of the rows' gradient and the one over rows."""
    x, kernel, _ = inputs()
    sizes = np.array([3, 5, 2, 4, 1, 5])

    def value(x, kernel):
        return grouped.grouped_matmul(x, kernel, sizes, implementation="interpreted").sum()

    program = jax.make_jaxpr(jax.grad(value, (0, 1)))(x, kernel)
    assert str(program).count("pallas_call[") == 3


@pytest.mark.parametrize("topology", others_slow(TOPOLOGIES, TOPOLOGIES[0]))
def test_on_tpu_product_and_gradients_cost_what_their_rows_cost(topology):
    """Oracle: the compiler's own count: three products of each row with one matrix, with an eighth to spare
    for what is no product; dense over the eight experts any of them would add 7 / 3. All are kernels.
    """
    r, d, f, e = 4096, 512, 768, 8

    def loss(rows, kernel, sizes):
        return (grouped.grouped_matmul(rows, kernel, sizes).astype(jnp.float32) ** 2).sum()

    shapes = ((r, d), "bfloat16"), ((e, d, f), "float32"), ((e,), "int32")
    program = compiled(topology, jax.grad(loss, argnums=(0, 1)), *shapes)
    assert 1 <= program.cost_analysis()["flops"] / (3 * 2 * r * d * f) < 1.125
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 3
