"""The exchange of tokens between devices, against loops over tokens and experts on one device."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.models.decoder import checkpoint_policy
from deepseek_jax.models.moe import Routing
from deepseek_jax.models.remat_policies import REMAT_POLICIES, saves_marked
from deepseek_jax.ops import grouped_matmul as grouped
from deepseek_jax.parallel import bounded, make_mesh
from deepseek_jax.parallel.bounded import ExpertProducts, receive_rows
from deepseek_jax.parallel.dispatch import Kernels, expert_parallel
from deepseek_jax.training.state import state_maker
from deepseek_jax.training.update import Update
from tests.quick import others_slow

B, T, A, E, D, F = 8, 4, 2, 16, 6, 4
MESHES = {
    "expert": dict(data=1, expert=8),
    "fsdp, expert, tensor": dict(data=1, fsdp=2, expert=2, tensor=2),
    "expert, context": dict(data=1, expert=4, context=2),
    # A placement may put any device anywhere
    "devices in another order": dict(data=1, expert=4, context=2),
}
ORDERS = {"devices in another order": (5, 2, 7, 0, 3, 6, 1, 4)}
RNG = np.random.default_rng(0)
ROUTES = {
    "random": np.stack([RNG.permutation(E)[:A] for _ in range(B * T)]),
    "balanced": np.arange(B * T * A) % E,
    "all to the first device": np.tile([1, 0], (B * T, 1)),
    "all to the last device": np.tile([E - 2, E - 1], (B * T, 1)),
}
ROUTES = {name: experts.reshape(B, T, A).astype(np.int32) for name, experts in ROUTES.items()}
AXES = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
CLOSE = dict(rtol=1e-5, atol=1e-5)  # float32 rounding


def inputs():
    """x, weights, (up, down)."""
    rng = np.random.default_rng(1)
    shapes = (B, T, D), (B, T, A), (E, D, F), (E, F, D)
    x, weights, up, down = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, weights, (up, down)


def up(kernel, rows, rows_per_expert, *, block):
    """The hidden values of rows that are sorted by expert, before the activation, tanh."""
    return grouped.grouped_matmul(rows, kernel, rows_per_expert)


def down(kernel, hidden, rows_per_expert, weight_r1, *, block):
    """down(tanh(hidden)), weighed."""
    return grouped.grouped_matmul(jnp.tanh(hidden) * weight_r1, kernel, rows_per_expert)


PRODUCTS = ExpertProducts(up, down)


def with_axes(arrays):
    """The arguments of expert_parallel after the products: (x, experts, weights, Kernels)."""
    *tokens, matrices = arrays
    return *tokens, Kernels(matrices, AXES)


def dense(x, experts, weights, kernels):
    """Every expert on every token; one-hot weights select the chosen ones."""
    up, down = kernels
    weight_bte = (jax.nn.one_hot(experts, E) * weights[..., None]).sum(-2)
    hidden = jnp.tanh(jnp.einsum("btd,edf->btef", x, up))
    return jnp.einsum("btef,efd,bte->btd", hidden, down, weight_bte)


def probe(y):
    """A scalar that every output moves differently."""
    return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum()


@functools.cache
def on_mesh(mesh, implementation, buffer, saves_hidden=False):
    """A compiled (x, experts, weights, kernels) -> (y, gradients of x, weights and kernels, overflows)."""
    devices = [jax.devices()[number] for number in ORDERS.get(mesh, range(8))]
    mesh = make_mesh(**MESHES[mesh], devices=devices)

    def run(x, experts, weights, kernels):
        def loss(x, weights, kernels):
            options = dict(buffer=buffer, implementation=implementation, saves_hidden=saves_hidden)
            y, overflows = expert_parallel(
                PRODUCTS, x, experts, weights, Kernels(kernels, AXES), **options
            )
            return probe(y), (y, overflows)

        gradients, aux = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, weights, kernels)
        y, overflows = aux
        return y, gradients, overflows

    compiled = jax.jit(run)

    def run_under_mesh(*arguments):
        with jax.set_mesh(mesh):
            return compiled(*arguments)

    return run_under_mesh


def exchanged(mesh, implementation, route, buffer=None, saves_hidden=False):
    x, weights, kernels = inputs()
    run = on_mesh(mesh, implementation, buffer, saves_hidden)
    return run(x, ROUTES[route], weights, kernels)


@functools.cache
def alone(route):
    """(y by a numpy loop in float64, gradients of every expert on every token)."""
    x, weights, (up, down) = inputs()
    exact = np.zeros((B, T, D))
    for b, t, choice in np.ndindex(B, T, A):
        expert = ROUTES[route][b, t, choice]
        hidden = np.tanh(x[b, t].astype(float) @ up[expert])
        exact[b, t] += weights[b, t, choice] * (hidden @ down[expert])

    def loss(x, weights, kernels):
        return probe(dense(x, ROUTES[route], weights, kernels))

    return exact, jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, weights, (up, down))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("implementation", ["padded", "ragged"])
# Devices in another order have the axes of "expert, context", and "expert" is within the mixed mesh
@pytest.mark.parametrize("mesh", others_slow(MESHES, *list(MESHES)[1::2]))
def test_every_token_reaches_all_its_experts_and_comes_back(mesh, implementation, route):
    """Oracles: a numpy loop over tokens and choices in float64; gradients of every expert on every token."""
    y, gradients, _ = exchanged(mesh, implementation, route)
    exact, wanted = alone(route)
    np.testing.assert_allclose(y, exact, **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), gradients, wanted)


@pytest.mark.parametrize("rows, tokens", [(3, T), (B, 3), (1, 1)])
def test_rows_or_tokens_that_do_not_split_run_whole(rows, tokens):
    """Oracle: every expert on every token; the program has no exchange in it."""
    x, weights, kernels = inputs()
    arrays = x[:rows, :tokens], ROUTES["random"][:rows, :tokens], weights[:rows, :tokens]
    with jax.set_mesh(make_mesh(**MESHES["expert, context"])):
        run = jax.jit(lambda *arrays: expert_parallel(PRODUCTS, *with_axes(arrays))[0])
        assert "all_to_all" not in run.lower(*arrays, kernels).as_text()
        np.testing.assert_allclose(run(*arrays, kernels), dense(*arrays, kernels), **CLOSE)


def test_rows_that_split_are_exchanged():
    """Oracle: the program has the exchange that the program of the test above lacks."""
    x, weights, kernels = inputs()
    with jax.set_mesh(make_mesh(**MESHES["expert, context"])):
        run = jax.jit(lambda *arrays: expert_parallel(PRODUCTS, *with_axes(arrays))[0])
        assert "all_to_all" in run.lower(x, ROUTES["random"], weights, kernels).as_text()


@pytest.mark.parametrize("dtype, name", [("bfloat16", "bf16"), ("float32", "f32")])
def test_kernels_enter_split_and_their_gradients_leave_split(dtype, name):
    """Oracle: the program: each kernel is gathered once, in its dtype, and its gradient is reduced and
    scattered in float32; nothing of a whole kernel's size is reduced.
    """
    x, weights, kernels = inputs()

    def loss(kernels):
        arrays = x, ROUTES["random"], weights
        return probe(expert_parallel(PRODUCTS, *arrays, Kernels(kernels, AXES, dtype))[0])

    with jax.set_mesh(make_mesh(**MESHES["fsdp, expert, tensor"])):
        text = jax.jit(jax.grad(loss)).lower(kernels).as_text()
    gathers = [line for line in text.splitlines() if "stablehlo.all_gather" in line]
    held, f = E // 2, F // 2
    for shape in (f"{held}x{D}x{f}", f"{held}x{f}x{D}"):
        assert sum(line.endswith(f"-> tensor<{shape}x{name}>") for line in gathers) == 1
    scattered = re.findall(r"stablehlo\.reduce_scatter.*?\}\) : \(tensor<(\S+?)>\)", text, re.S)
    assert scattered == [f"{held}x{f}x{D}xf32", f"{held}x{D}x{f}xf32"]
    reduced = re.findall(r"stablehlo\.all_reduce.*?\}\) : \(tensor<(\S+?)>\)", text, re.S)
    # Shares may be, over axes that do not split them
    assert not {f"{held}x{f}x{D}xf32", f"{held}x{D}x{f}xf32"} & set(reduced)


@pytest.mark.slow
def test_a_bounded_buffer_that_suffices_changes_nothing():
    """Oracle: the padded exchange. Balanced tokens fill a buffer of 1.0 to the last row."""
    *ours, overflows = exchanged("expert", "ragged", "balanced", 1.0)
    *wanted, nothing = exchanged("expert", "padded", "balanced")
    assert overflows == 0 and nothing is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, wanted)


@pytest.mark.parametrize("route, overflow", [("balanced", 0), ("all to the last device", 1)])
def test_saved_hidden_rows_give_the_same_gradients(route, overflow):
    """Oracle: the padded exchange, where rows fit and where they overflow."""
    *ours, overflows = exchanged("expert", "ragged", route, 1.0, saves_hidden=True)
    *wanted, _ = exchanged("expert", "padded", route)
    assert overflows == overflow
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, wanted)


def test_saved_hidden_rows_are_not_computed_again():
    """Oracle: the programs: a policy that saves them has half of the first products of one that does not."""
    x, weights, kernels = inputs()
    how = dict(buffer=1.0, implementation="ragged")

    def marked(*arguments, **more):
        with jax.named_scope("first"):
            return up(*arguments, **more)

    products = ExpertProducts(marked, down)

    def first_products(remat):
        def layer(*arrays):
            saves = saves_marked(remat)
            return expert_parallel(products, *with_axes(arrays), saves_hidden=saves, **how)[0]

        policy = checkpoint_policy(REMAT_POLICIES[remat])

        def loss(weights, kernels):
            # The gradient of a square needs the layer's output
            y = jax.checkpoint(layer, policy=policy)(x, ROUTES["balanced"], weights, kernels)
            return jnp.square(y).sum()

        with jax.set_mesh(make_mesh(**MESHES["expert"])):
            program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(weights, kernels).compile()
        lines = [line for line in program.as_text().splitlines() if " dot(" in line]
        others = bounded.RARE, "transpose(jvp(first))"
        return sum("first" in line and not any(map(line.count, others)) for line in lines)

    assert first_products("attention") == 2 * first_products("selective") > 0


@pytest.mark.parametrize(
    "mesh, route, at_once",
    others_slow(
        list(itertools.product(MESHES, ["all to the last device", "random"], [256, 1])),
        ("expert", "random", 256),
        ("fsdp, expert, tensor", "all to the last device", 1),
    ),
)
def test_rows_that_overflow_a_buffer_are_exchanged_again(monkeypatch, mesh, route, at_once):
    """Oracle: the padded exchange, gradients too; with a buffer of 1.0 both routes overflow. Also one token
    at a time.
    """
    *wanted, _ = exchanged(mesh, "padded", route)
    monkeypatch.setattr(bounded, "AT_ONCE", at_once)
    x, weights, kernels = inputs()
    # Beside the cache, as AT_ONCE is read while it is traced
    run = on_mesh.__wrapped__(mesh, "ragged", 1.0)
    *ours, overflows = run(x, ROUTES[route], weights, kernels)
    assert overflows == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, wanted)


def fullest(route, mesh):
    """The most rows that a device gets, in even shares of them: by numpy."""
    shards = MESHES[mesh]["expert"]
    # The devices of different groups along "expert" have different rows of the batch
    groups = np.split(ROUTES[route], 8 // shards)
    rows = [np.bincount(group.ravel() // (E // shards), minlength=shards).max() for group in groups]
    return max(rows) / (ROUTES[route].size / 8)


@pytest.mark.slow
def test_a_buffer_that_just_suffices_does_not_overflow():
    """Oracle: numpy counts the rows of the fullest device, fewer than in the worst case. With room for one
    less, it does.
    """
    share, row = fullest("random", "expert"), 1 / (B * T * A / 8)
    assert 1 < share < 8
    assert exchanged("expert", "ragged", "random", share)[-1] == 0
    assert exchanged("expert", "ragged", "random", share - row)[-1] == 1


def test_gradients_of_blocks_add_up_in_float32(monkeypatch):
    """Oracle: one block. Kernels are gathered in bfloat16: a sum of 16 rounded parts would be several
    roundings off.
    """

    def of_kernels(at_once):
        monkeypatch.setattr(bounded, "AT_ONCE", at_once)
        x, weights, kernels = inputs()

        def loss(kernels):
            arrays = x, ROUTES["all to the last device"], weights
            how = dict(buffer=1.0, implementation="ragged")
            y, _ = expert_parallel(PRODUCTS, *arrays, Kernels(kernels, AXES, "bfloat16"), **how)
            return probe(y)

        with jax.set_mesh(make_mesh(**MESHES["fsdp, expert, tensor"])):
            return jax.device_get(jax.jit(jax.grad(loss))(kernels))

    for parts, whole in zip(of_kernels(1), of_kernels(256), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=2.0**-7, atol=2.0**-9 * np.abs(whole).max())


@pytest.mark.slow
def test_updates_whose_tokens_overflow_are_right():
    """Oracle: the padded exchange's updates, each after the one before; every one overflows."""
    x, weights, kernels = inputs()
    tx = optax.sgd(0.01)

    def loss_of(buffer, implementation):
        def loss_fn(params, batch, rng):
            arrays = x, batch["experts"], params["weights"], params["kernels"]
            options = dict(buffer=buffer, implementation=implementation)
            y, overflows = expert_parallel(PRODUCTS, *with_axes(arrays), **options)
            overflows = None if overflows is None else overflows[None]
            routing = Routing(jnp.ones((1, E)), jnp.zeros(1), overflows)
            return (y**2).mean(), {"routing": {"moe_layers": routing}}

        return loss_fn

    def states(buffer, implementation):
        """(parameters, overflows) after each of three steps."""
        params = jax.tree.map(jnp.array, {"weights": weights, "kernels": kernels})
        create, placed = state_maker(params, tx, mesh)
        state, step = create(params), Update(loss_of(buffer, implementation), tx, placed)
        for _ in range(3):
            batch = {"experts": ROUTES["random"]}
            state, metrics = step(state, batch, jax.random.key(0))
            yield jax.device_get(state.params), metrics.get("expert_overflows")

    mesh = make_mesh(**MESHES["expert"])
    with jax.set_mesh(mesh):
        buffer = fullest("random", "expert") / 1.2
        ours, plain = list(states(buffer, "ragged")), list(states(None, "padded"))
    assert [overflows for _, overflows in ours] == [1, 1, 1]
    for (our, _), (theirs, _) in zip(ours, plain, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), our, theirs)


def test_room_is_a_multiple_of_the_balanced_share_and_never_more_than_the_worst_case():
    """Oracle: by hand: 10 tokens of 4 choices on each of 8 devices."""
    assert receive_rows((10, 4), 8, 16, None) == 8 * 10 * 4
    assert receive_rows((10, 4), 8, 2, None) == 8 * 10 * 2  # no token chooses an expert twice
    assert receive_rows((10, 4), 8, 16, 1.26) == 51
    assert receive_rows((10, 4), 8, 2, 100.0) == 160
