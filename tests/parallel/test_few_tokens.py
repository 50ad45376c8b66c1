"""A token step's exchange, against loops over tokens and experts on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.gated_mlp import gated_mlp, run_sorted
from deepseek_jax.parallel import few_tokens, make_mesh, round_trip
from deepseek_jax.parallel.decoding import decoding, decoding_mesh, join_halves
from deepseek_jax.parallel.few_tokens import Experts, Split, over_heads, over_widths
from deepseek_jax.parallel.shard import constrain

B, A, E, D, F, HEADS = 16, 2, 16, 8, 8, 8
MESHES = {
    "expert": dict(data=1, expert=8),
    "expert and context": dict(data=1, expert=2, context=4),
    "expert and fsdp": dict(data=1, expert=2, fsdp=4),
    "fsdp": dict(data=1, fsdp=8),
    "data": dict(data=8),
    "three axes": dict(data=1, expert=2, fsdp=2, context=2),
}
RNG = np.random.default_rng(0)
ROUTES = {
    "random": np.stack([RNG.permutation(E)[:A] for _ in range(B)]),
    "all to the first device": np.tile([1, 0], (B, 1)),
    "all to the last device": np.tile([E - 2, E - 1], (B, 1)),
}
ROUTES = {name: experts.astype(np.int32) for name, experts in ROUTES.items()}
APART = ("embed", "gate_up", "mlp"), ("mlp", "embed")
OF_EXPERTS = tuple(("experts", *axes) for axes in APART)
CLOSE = dict(rtol=1e-5, atol=1e-5)  # float32 rounding


def arrays():
    """x, weights, (gate and up [e d 2 f], down [e f d]) of experts, the same of the MLP beside them."""
    rng = np.random.default_rng(1)
    shapes = (B, D), (B, A), (E, D, 2, F), (E, F, D), (D, 2, F), (F, D)
    x, weights, *matrices = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, weights, tuple(matrices[:2]), tuple(matrices[2:])


def on_rollout_mesh(axes, function):
    """function() on a rollout's mesh of eight devices, traced with its table."""
    mesh = decoding_mesh(make_mesh(**axes), HEADS)
    with jax.set_mesh(mesh):

        def run():
            with decoding(HEADS, E):
                return function()

        return jax.jit(run)()


def joined(matrices, axes):
    """The Split of matrices as a rollout has them."""
    gate_up = join_halves(constrain(matrices[0], axes[0]), axes[0])
    names = tuple(name for name in axes[0] if name != "gate_up")
    return Split((gate_up, constrain(matrices[1], axes[1])), (names, axes[1]))


def mlp(x, w_gate_up, w_down):
    """A gated MLP in float64, by numpy."""
    gate, up = np.einsum("d,dzf->zf", x.astype(float), w_gate_up.astype(float))
    return (gate / (1 + np.exp(-gate)) * up) @ w_down.astype(float)


def summed(route, has_shared):
    """The loop over tokens and their choices: float64[b d]."""
    x, weights, (gate_up, down), shared = arrays()
    exact = np.zeros((B, D))
    for b, choice in np.ndindex(B, A):
        expert = ROUTES[route][b, choice]
        exact[b] += weights[b, choice] * mlp(x[b], gate_up[expert], down[expert])
    for b in range(B * has_shared):
        exact[b] += mlp(x[b], *shared)
    return exact


def step(axes, route, *, has_shared=True):
    """few_tokens on a mesh: the sum, and the choices."""
    x, weights, routed, shared = arrays()

    # Each token finds its own choice by its first number
    def choose(x_md, all_bd, experts_ba, weights_ba):
        row_m = jnp.argmax((x_md[:, None] == all_bd).all(-1), axis=1)
        return experts_ba[row_m], weights_ba[row_m]

    def run():
        experts = Experts(
            choose,
            (x, ROUTES[route], weights),
            run_sorted,
            joined(routed, OF_EXPERTS),
            gated_mlp,
            joined(shared, APART) if has_shared else None,
        )
        return few_tokens.few_tokens(experts, jnp.asarray(x))

    return on_rollout_mesh(axes, run)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("mesh", MESHES)
def test_every_token_has_the_sum_of_its_experts_and_of_the_mlp_beside_them(mesh, route):
    """Oracle: a numpy loop over tokens and choices in float64, whatever the mesh splits."""
    y, experts = step(MESHES[mesh], route)
    np.testing.assert_allclose(y, summed(route, True), **CLOSE)
    np.testing.assert_array_equal(experts, ROUTES[route])


def test_a_layer_without_shared_experts_has_the_sum_of_the_others():
    """Oracle: the same loop, without the MLP beside them."""
    y, _ = step(MESHES["three axes"], "random", has_shared=False)
    np.testing.assert_allclose(y, summed("random", False), **CLOSE)


@pytest.mark.parametrize("mesh", ["expert", "expert and context", "three axes"])
@pytest.mark.parametrize("route", ROUTES)
def test_rows_that_do_not_fit_come_in_further_rounds(monkeypatch, mesh, route):
    """Oracle: the same loop, where a device has room for one row a choice of its own tokens: all tokens to
    one device take several rounds.
    """
    monkeypatch.setattr(round_trip, "UNEVEN", 0.0)
    monkeypatch.setattr(round_trip, "SUBLANES", 1)
    y, _ = step(MESHES[mesh], route)
    np.testing.assert_allclose(y, summed(route, True), **CLOSE)


@pytest.mark.parametrize("mesh", MESHES)
def test_heads_that_are_split_add_up(mesh):
    """Oracle: numpy's einsum in float64, whatever heads a device has."""
    rng = np.random.default_rng(2)
    a, w = rng.normal(size=(B, HEADS, 4)), rng.normal(size=(HEADS, 4, D))
    product = functools.partial(dot, "bhu,hud->bd")
    arrays = (jnp.asarray(x, jnp.float32) for x in (a, w))
    y = on_rollout_mesh(MESHES[mesh], functools.partial(over_heads, product, *arrays))
    np.testing.assert_allclose(y, np.einsum("bhu,hud->bd", a, w), **CLOSE)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_width_that_is_split_adds_up(mesh):
    """Oracle: the numpy loop of one gated MLP."""
    x, _, _, shared = arrays()
    y = on_rollout_mesh(
        MESHES[mesh], lambda: over_widths(gated_mlp, jnp.asarray(x), joined(shared, APART))
    )
    np.testing.assert_allclose(y, [mlp(row, *shared) for row in x], **CLOSE)
