"""A token step's feed-forward part, against loops over tokens and experts on one device."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.gated_mlp import gated_mlp, run_few
from deepseek_jax.parallel import few_tokens, make_mesh, round_trip
from deepseek_jax.parallel.decoding import decoding_axes, decoding_mesh, join_halves
from deepseek_jax.parallel.few_tokens import Experts, Split, added_up
from deepseek_jax.parallel.shard import constrain
from tests.quick import others_slow

B, A, D, HEADS = 16, 2, 8, 8
MESHES = {
    "expert": dict(data=1, expert=8),
    "expert and context": dict(data=1, expert=2, context=4),
    "expert and fsdp": dict(data=1, expert=2, fsdp=4),
    "fsdp": dict(data=1, fsdp=8),
    "data": dict(data=8),
    "three axes": dict(data=1, expert=2, fsdp=2, context=2),
}
# (experts, width): experts take all axes of a mesh; two axes, so that fsdp splits their width, as on a pod;
# and a width that does not split over fsdp, where that of both halves would
SIZES = {"many": (16, 8), "few": (4, 8), "odd": (4, 9)}
APART = ("embed", "gate_up", "mlp"), ("mlp", "embed")
OF_EXPERTS = tuple(("experts", *axes) for axes in APART)
CLOSE = dict(rtol=1e-5, atol=1e-5)  # float32 rounding


def routes(e):
    """{name: the choices of each token, int32[b a]}."""
    rng = np.random.default_rng(0)
    found = {
        "random": np.stack([rng.permutation(e)[:A] for _ in range(B)]),
        "first": np.tile([1, 0], (B, 1)),
        "last": np.tile([e - 2, e - 1], (B, 1)),
    }
    return {name: experts.astype(np.int32) for name, experts in found.items()}


def arrays(e, f):
    """x, weights, (gate and up [e d 2 f], down [e f d]) of experts, the same of the MLP beside them."""
    rng = np.random.default_rng(1)
    shapes = (B, D), (B, A), (e, D, 2, f), (e, f, D), (D, 2, f), (f, D)
    x, weights, *matrices = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, weights, tuple(matrices[:2]), tuple(matrices[2:])


def on_rollout_mesh(axes, function, e):
    """The function compiled for a rollout's mesh of eight devices, traced with its table for e experts."""
    mesh = decoding_mesh(make_mesh(**axes), HEADS)

    @jax.jit
    def run(*arguments):
        with decoding_axes(HEADS, e):
            return function(*arguments)

    def run_under_mesh(*arguments):
        with jax.set_mesh(mesh):
            return run(*arguments)

    return run_under_mesh


def joined(matrices, axes, dtype):
    """The Split of matrices as a rollout has them."""
    gate_up, down = (constrain(w.astype(dtype), a) for w, a in zip(matrices, axes, strict=True))
    names = tuple(name for name in axes[0] if name != "gate_up")
    return Split((join_halves(gate_up, axes[0]), down), (names, axes[1]))


def mlp(x, w_gate_up, w_down):
    """A gated MLP in float64, by numpy."""
    gate, up = np.einsum("d,dzf->zf", x.astype(float), w_gate_up.astype(float))
    return (gate / (1 + np.exp(-gate)) * up) @ w_down.astype(float)


def summed(size, route, has_shared=True):
    """The loop over tokens and their choices: float64[b d]."""
    e, f = SIZES[size]
    x, weights, (gate_up, down), shared = arrays(e, f)
    exact = np.zeros((B, D))
    for b, choice in np.ndindex(B, A):
        expert = routes(e)[route][b, choice]
        exact[b] += weights[b, choice] * mlp(x[b], gate_up[expert], down[expert])
    for b in range(B * has_shared):
        exact[b] += mlp(x[b], *shared)
    return exact


def step(mesh, size, route, has_shared=True, dtype=np.float32):
    """few_tokens on a mesh: the sum, and the choices."""
    e, f = SIZES[size]
    rounds = round_trip.UNEVEN, round_trip.SUBLANES
    return compiled_step(mesh, e, has_shared, dtype, rounds)(routes(e)[route], *arrays(e, f))


@functools.cache
def compiled_step(mesh, e, has_shared, dtype, rounds):
    """(choices, *arrays()) -> few_tokens. rounds: what tests change, and decides when it is traced."""

    def choose(x_md, all_bd, experts_ba, weights_ba):
        # Each token finds its own choice by its numbers
        row_m = jnp.argmax((x_md[:, None] == all_bd).all(-1), axis=1)
        return experts_ba[row_m], weights_ba[row_m]

    def run(chosen, x, weights, routed, shared):
        rows = x.astype(dtype)
        experts = Experts(
            choose=choose,
            router=(rows, chosen, weights),
            run=run_few,
            routed=joined(routed, OF_EXPERTS, dtype),
            beside=gated_mlp,
            shared=joined(shared, APART, dtype) if has_shared else None,
        )
        return few_tokens.few_tokens(experts, rows)

    return on_rollout_mesh(MESHES[mesh], run, e)


CASES = [
    ("many", "random"),
    ("many", "first"),
    ("many", "last"),
    ("few", "random"),
    ("odd", "last"),
]
# Experts split over the axis of experts whatever their number
CASES = [
    (mesh, *case) for mesh in MESHES for case in CASES if mesh != "expert" or case[0] == "many"
]
# Each size where it is split in more ways than elsewhere; routes share a program
QUICK = [case for case in CASES if case[:2] in (("expert", "many"), ("three axes", "many"))]
QUICK += [("expert and fsdp", "few", "random"), ("expert and fsdp", "odd", "last")]
QUICK += [("data", "few", "random")]


@pytest.mark.parametrize(("mesh", "size", "route"), others_slow(CASES, *QUICK))
def test_every_token_has_the_sum_of_its_experts_and_of_the_mlp_beside_them(mesh, size, route):
    """Oracle: a numpy loop over tokens and choices in float64, whatever the mesh splits."""
    y, experts, _ = step(mesh, size, route)
    np.testing.assert_allclose(y, summed(size, route), **CLOSE)
    np.testing.assert_array_equal(experts, routes(SIZES[size][0])[route])


def test_a_layer_without_shared_experts_has_the_sum_of_the_others():
    """Oracle: the same loop, without the MLP beside them."""
    y, *_ = step("three axes", "many", "random", has_shared=False)
    np.testing.assert_allclose(y, summed("many", "random", has_shared=False), **CLOSE)


@pytest.mark.parametrize("size", ["many", "few"])
def test_rows_in_bfloat16_are_sent_in_pairs_and_come_back(size):
    """Oracle: the same loop, to the rounding of bfloat16: 8 bits, of sums of a few dozen terms."""
    y, *_ = step("three axes", size, "random", dtype=jnp.bfloat16)
    exact = summed(size, "random")
    np.testing.assert_allclose(y.astype(np.float32), exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.parametrize(
    "mesh", others_slow(["expert", "expert and context", "three axes"], "expert", "three axes")
)
@pytest.mark.parametrize("route", ["random", "first", "last"])
def test_rows_that_do_not_fit_come_in_further_rounds(monkeypatch, mesh, route):
    """Oracle: the same loop, where a device has room for one row a choice of its own tokens: all tokens to
    one device take several rounds; how many, by counting the rows of each pair of experts, 4 in a round.
    """
    monkeypatch.setattr(round_trip, "UNEVEN", 0.0)
    monkeypatch.setattr(round_trip, "SUBLANES", 1)
    y, _, rounds = step(mesh, "many", route)
    fullest = np.bincount(routes(16)[route].ravel() // 2).max()
    assert rounds.tolist() == [math.ceil(fullest / 4)] * 8
    np.testing.assert_allclose(y, summed("many", route), **CLOSE)


def test_one_expert_of_a_device_takes_several_rounds(monkeypatch):
    """Oracle: the same loop; 4 experts on 4 devices, two of which get all 32 rows, in rounds of 16."""
    monkeypatch.setattr(round_trip, "UNEVEN", 0.0)
    y, _, rounds = step("expert and context", "few", "first")
    assert rounds.tolist() == [2] * 8
    exact = summed("few", "first")
    np.testing.assert_allclose(y, exact, **CLOSE)


def test_many_rows_are_left_to_the_exchange_of_training():
    """Oracle: by hand: 64 rows a device are few; a mesh is needed, and rows that split over it."""
    with jax.set_mesh(make_mesh(data=8)):
        kinds = [few_tokens.has_few_tokens(jnp.zeros((b, D))) for b in (8, 512, 520, 12)]
        assert kinds == [True, True, False, False]
    assert not few_tokens.has_few_tokens(jnp.zeros((8, D)))


@pytest.mark.parametrize("mesh", others_slow(MESHES, "fsdp", "three axes"))
def test_heads_that_are_split_add_up(mesh):
    """Oracle: numpy's einsum in float64, whatever heads a device has."""
    rng = np.random.default_rng(2)
    a, w = rng.normal(size=(B, HEADS, 4)), rng.normal(size=(HEADS, 4, D))
    split = Split((jnp.asarray(w, jnp.float32),), (("heads", None, None),), contracted="heads")
    product, rows = functools.partial(dot, "bhu,hud->bd"), jnp.asarray(a, jnp.float32)
    y = on_rollout_mesh(
        MESHES[mesh], lambda: added_up(product, rows, ("batch", "heads", None), split), e=8
    )()
    np.testing.assert_allclose(y, np.einsum("bhu,hud->bd", a, w), **CLOSE)


WIDTHS = [(mesh, f) for mesh in MESHES for f in (8, 12, 9)]


@pytest.mark.parametrize(
    ("mesh", "f"), others_slow(WIDTHS, ("three axes", 8), ("fsdp", 12), ("expert and fsdp", 9))
)
def test_a_width_that_is_split_adds_up(mesh, f):
    """Oracle: the numpy loop of one gated MLP; also of a width that does not split over 8 devices, twice
    which does.
    """
    x, _, _, shared = arrays(8, f)

    def run():
        return added_up(gated_mlp, jnp.asarray(x), ("batch",), joined(shared, APART, np.float32))

    y = on_rollout_mesh(MESHES[mesh], run, e=8)()
    np.testing.assert_allclose(y, [mlp(row, *shared) for row in x], **CLOSE)
