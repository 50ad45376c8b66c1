"""Gated MLPs against numpy in float64, and their FP8 form against one product an expert."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops import grouped_matmul as grouped
from deepseek_jax.ops.fp8_dot import fp8_dot
from deepseek_jax.ops.fp8_grouped import expert_block
from deepseek_jax.ops.gated_mlp import experts_down, experts_up, gated_mlp, run_few, swiglu
from tests.ops.test_attention import normal

D, F = 6, 5
CLOSE = dict(rtol=1e-5, atol=1e-5)  # float32 rounding


def mlp(x, w_gate_up, w_down):
    """x [m d], w_gate_up [d 2 f] or [d 2f], w_down [f d], in float64."""
    gate, up = np.split(x.astype(float) @ w_gate_up.reshape(len(w_gate_up), -1), 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * up @ w_down


@pytest.mark.parametrize("shape", [(D, 2, F), (D, 2 * F)])
def test_one_gated_mlp_is_swiglu_between_two_products(shape):
    """Oracle: numpy in float64; a weight for gate and up in either shape, tokens below two axes."""
    x, w_gate_up, w_down = normal(0, 2, 3, D), normal(1, *shape), normal(2, F, D)
    exact = mlp(x.reshape(-1, D), w_gate_up, w_down).reshape(x.shape)
    np.testing.assert_allclose(gated_mlp(x, w_gate_up, w_down), exact, **CLOSE)


@pytest.mark.parametrize("shape", [(D, 2, F), (D, 2 * F)])
@pytest.mark.parametrize("rows_per_expert", [[7], [3, 4], [2, 0, 5]])
def test_sorted_rows_pass_through_their_own_experts(rows_per_expert, shape):
    """Oracle: numpy in float64, expert by expert; one expert, two, and an idle one. Rows of 2 x 3 numbers."""
    e, ends = len(rows_per_expert), np.cumsum(rows_per_expert)
    rows, w_gate_up, w_down = normal(0, 7, 2, 3), normal(1, e, *shape), normal(2, e, F, D)
    ours = run_few((w_gate_up, w_down), rows, jnp.asarray(rows_per_expert))
    own = zip(np.split(rows.reshape(7, D), ends[:-1]), w_gate_up, w_down, strict=True)
    exact = np.concatenate([mlp(*each) for each in own])
    np.testing.assert_allclose(ours, exact.reshape(rows.shape), **CLOSE)


def test_experts_in_fp8_round_as_one_product_an_expert_does():
    """Oracle: fp8_dot on the tokens of each expert, gate and up in tiles of their own, the first product's
    scales powers of two. A value that float32 rounds across one of E4M3's halves moves by 1/16: of 96 terms
    that is below 1% of the whole, where another scale moves every one.
    """
    m, d, f, e = 9, 192, 96, 3
    x, weights = normal(0, m, d) * np.logspace(0, 2, d, dtype=np.float32), normal(1, m, 2)
    w_gate_up, w_down = normal(2, e, d, 2, f), normal(3, e, f, d)
    w_gate_up[:, :, 1] *= 50  # a tile with gate and up would lose the gate's bits
    experts = np.stack([np.arange(m) % 2, np.full(m, 2)], axis=1)
    exact = np.zeros((m, d))
    for token, choice in np.ndindex(m, 2):
        expert = experts[token, choice]
        gate_up = fp8_dot("md,dzf->mzf", x[token][None], w_gate_up[expert], power_of_two=True)
        hidden = swiglu(gate_up[:, 0], gate_up[:, 1])
        exact[token] += weights[token, choice] * fp8_dot("mf,fd->md", hidden, w_down[expert])[0]
    block = expert_block(experts.size, e)
    layout = grouped.expert_layout(jnp.asarray(experts), e, block)
    weight_r1 = grouped.weight_of_rows(weights, layout)[:, None]
    rows, counts = grouped.rows_by_expert(jnp.asarray(x), layout), layout.rows_per_expert
    hidden = experts_up(w_gate_up, rows, counts, block=block, fp8=True)
    ours = experts_down(w_down, hidden, counts, weight_r1, block=block, fp8=True)
    ours = grouped.summed(ours, layout)
    assert np.linalg.norm(ours - exact) < 0.01 * np.linalg.norm(exact)


def test_a_limit_clamps_the_gate_from_above_and_up_from_both_sides():
    """Oracle: by hand: a gate of -9 stays, one of 9 is 2, and up is within -2..2. Experts clamp too, by
    numpy.
    """
    gate, up = np.float32([-9, 9, 1, 1]), np.float32([1, 1, 9, -9])
    silu = [x / (1 + np.exp(-x)) for x in (-9.0, 2.0, 1.0, 1.0)]
    np.testing.assert_allclose(swiglu(gate, up, 2.0), np.multiply(silu, [1, 1, 2, -2]), rtol=1e-6)
    x, w_gate_up, w_down = normal(0, 5, D), normal(1, 1, D, 2, F), normal(2, 1, F, D)
    gate, up = np.split(x @ w_gate_up.reshape(D, -1), 2, axis=-1)
    assert (gate > 1).any() and (up < -1).any() and (up > 1).any()
    exact = (
        np.minimum(gate, 1) / (1 + np.exp(-np.minimum(gate, 1))) * np.clip(up, -1, 1) @ w_down[0]
    )
    rows_per_expert = jnp.array([5])
    hidden = experts_up(w_gate_up, x, rows_per_expert)
    ours = experts_down(w_down, hidden, rows_per_expert, limit=1.0)
    np.testing.assert_allclose(ours, exact, **CLOSE)
