import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.parallel import make_mesh, shardings
from deepseek_jax.training.optimizer import make_optimizer
from deepseek_jax.training.schedule import make_schedule
from deepseek_jax.training.state import TrainState, state_shardings
from tests.tiny import tiny_model

SETTINGS = dict(b1=0.9, b2=0.95, weight_decay=0.1, max_grad_norm=1.0)


def test_prediction_modules_are_left_alone_wherever_they_stand():
    """Oracle: by hand: without a gradient decay alone would move them; beside projections, a student's params
    stand one level deeper.
    """
    params = {"mtp_0": {"input": jnp.ones(3)}, "final": {"weight": jnp.ones(3)}}
    nested = {"student": params, "projections": jnp.ones(3)}
    tx = make_optimizer(lambda _: 0.1, b1=0.9, b2=0.9, weight_decay=0.5, max_grad_norm=1.0)
    zeros = jax.tree.map(jnp.zeros_like, nested)
    updates, _ = tx.update(zeros, tx.init(nested), nested)
    assert not updates["student"]["mtp_0"]["input"].any()
    assert updates["student"]["final"]["weight"].all()


def parameters():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "scale": (4,), "q_bias": (4,), "router_bias": (4,)}
    return {"layer": {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}}


def test_updates_are_clipped_adamw_with_decay_on_matrices_alone():
    """Oracle: AdamW written out in numpy float64, three updates, all clipped."""
    schedule = make_schedule(0.01, warmup_steps=1, num_steps=10)
    tx = make_optimizer(schedule, **SETTINGS)
    params = parameters()
    wanted = {name: x.astype(np.float64) for name, x in params["layer"].items()}
    mu = {name: 0.0 for name in wanted}
    nu = {name: 0.0 for name in wanted}
    opt_state = tx.init(params)
    rng = np.random.default_rng(1)
    for step, rate in enumerate([0.005, 0.01, 0.01]):
        grads = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in wanted.items()}
        grads["router_bias"] *= 0
        updates, opt_state = tx.update({"layer": grads}, opt_state, params)
        params = optax.apply_updates(params, updates)

        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        assert norm > 1
        for name in ("kernel", "scale", "q_bias"):
            g = grads[name] / norm
            mu[name] = 0.9 * mu[name] + 0.1 * g
            nu[name] = 0.95 * nu[name] + 0.05 * g**2
            direction = mu[name] / (1 - 0.9 ** (step + 1))
            direction = direction / (np.sqrt(nu[name] / (1 - 0.95 ** (step + 1))) + 1e-8)
            decay = 0.1 * wanted[name] if name == "kernel" else 0
            wanted[name] = wanted[name] - rate * (direction + decay)
    for name, x in params["layer"].items():
        np.testing.assert_allclose(x, wanted[name], atol=1e-6, err_msg=name)  # float32 rounding


def test_router_bias_has_no_moments_and_never_moves():
    """Oracle: the paths of the optimizer state's arrays; the bias before, even under a gradient."""
    tx = make_optimizer(make_schedule(0.01, num_steps=10), **SETTINGS)
    params = parameters()
    opt_state = tx.init(params)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(opt_state)]
    assert sum("kernel" in path for path in paths) == 2  # mean and variance
    assert not any("router_bias" in path for path in paths)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
    after = optax.apply_updates(params, updates)["layer"]["router_bias"]
    np.testing.assert_array_equal(after, params["layer"]["router_bias"])


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("part", "key"), [("mtp", "mtp_0"), ("indexer", "indexer")])
def test_a_part_moves_only_where_a_loss_trains_it(part, key, trained):
    """Oracle: paths of the state's arrays; the weights before, which decay alone would move, but never
    scales and biases.
    """
    parts = (part,) if trained else ()
    tx = make_optimizer(make_schedule(0.01, num_steps=10), **SETTINGS, trained_parts=parts)
    params = parameters() | {key: {"block": parameters()["layer"]}}
    opt_state = tx.init(params)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(opt_state)]
    assert sum(key in path for path in paths) == 2 * 3 * trained  # all but router_bias
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), opt_state, params)
    after = optax.apply_updates(params, updates)
    assert (after["layer"]["kernel"] != params["layer"]["kernel"]).all()
    before, after = params[key]["block"], after[key]["block"]
    moved = {name for name, x in after.items() if (x != before[name]).any()}
    assert moved == ({"kernel"} if trained else set())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gqa", "mla_moe"])
def test_matrices_alone_decay_in_a_whole_model(kind):
    """Oracle: without a gradient, exactly the parameters that are at least matrices within a layer move."""
    config, params = tiny_model(kind)
    tx = make_optimizer(make_schedule(0.01, num_steps=10), **SETTINGS)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        stacked = path[0].key.endswith("layers")  # leading axis: layers
        matrix = update.ndim - stacked >= 2 and not path[-1].key.endswith("bias")
        assert (update != 0).any() == matrix, jax.tree_util.keystr(path)


def twenty_updates(tx, *, jit):
    """The gradients, and params and optimizer state after each of 20 updates."""
    rng = np.random.default_rng(2)
    params = parameters()
    update = jax.jit(tx.update) if jit else tx.update
    opt_state, history = tx.init(params), []
    for _ in range(20):
        grads = jax.tree.map(
            lambda x: rng.normal(scale=rng.choice([1e-4, 1.0]), size=x.shape).astype(np.float32),
            params,
        )
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        history.append((grads["layer"], params["layer"], opt_state))
    return history


def moments(opt_state):
    (adam,) = [
        x
        for x in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
        if isinstance(x, optax.ScaleByAdamState)
    ]
    return adam.mu["layer"], adam.nu["layer"]


@pytest.mark.parametrize("jit", [False, True])
def test_bfloat16_moments_are_float32_arithmetic_rounded_once_an_update(jit):
    """Oracle: numpy in float32, with moments stored as ml_dtypes.bfloat16 between updates. Operation by
    operation, moments agree bit for bit; under jit XLA may fuse a multiply and an add into one rounding,
    which moves a few by one bfloat16 step, and what follows from them by as much.
    """
    settings = SETTINGS | dict(max_grad_norm=1e6, moment_dtype="bfloat16")
    tx = make_optimizer(make_schedule(0.01, num_steps=20), **settings)
    f32, bf16 = np.float32, ml_dtypes.bfloat16
    wanted = parameters()["layer"]
    mu = {name: np.zeros(x.shape, bf16) for name, x in wanted.items()}
    nu = {name: np.zeros(x.shape, bf16) for name, x in wanted.items()}
    for step, (grads, params, opt_state) in enumerate(twenty_updates(tx, jit=jit)):
        got_mu, got_nu = moments(opt_state)
        for name in ("kernel", "scale", "q_bias"):
            g = grads[name]
            m = f32(1 - 0.9) * g + f32(0.9) * mu[name].astype(f32)
            v = f32(1 - 0.95) * (g * g) + f32(0.95) * nu[name].astype(f32)
            mu[name], nu[name] = m.astype(bf16), v.astype(bf16)
            direction = (mu[name].astype(f32) / f32(1 - 0.9 ** (step + 1))) / (
                np.sqrt(nu[name].astype(f32) / f32(1 - 0.95 ** (step + 1))) + f32(1e-8)
            )
            decay = f32(0.1) * wanted[name] if name == "kernel" else 0
            wanted[name] = wanted[name] - f32(0.01) * (direction + decay)
            for got, want in ((got_mu[name], mu[name]), (got_nu[name], nu[name])):
                assert got.dtype == jnp.bfloat16
                if jit:
                    np.testing.assert_allclose(got.astype(f32), want.astype(f32), rtol=2**-7)
                else:
                    np.testing.assert_array_equal(got, want)
            # 20 updates of 0.01, each off by float32 rounding, or by a bfloat16 step of a moment
            atol = 20 * 0.01 * (2**-7 if jit else 1e-6)
            np.testing.assert_allclose(params[name], wanted[name], atol=atol)


@pytest.mark.parametrize("moment_dtype", ["float32", "bfloat16"])
def test_an_update_copies_nothing_that_it_replaces(moment_dtype):
    """Oracle: XLA's own account of its temporaries, in parts of one of the three donated parameters."""
    tx = make_optimizer(make_schedule(0.01, num_steps=10), **SETTINGS, moment_dtype=moment_dtype)
    params = {name: jnp.zeros((64, 4096)) for name in "abc"}

    def update(params, opt_state, grads):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    compiled = (
        jax.jit(update, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile()
    )
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * params["a"].nbytes


def test_numbers_are_optaxs_own():
    """Oracle: optax's chain, ten jitted updates, clipped; the clip alone may round otherwise."""
    schedule = make_schedule(0.01, warmup_steps=3, num_steps=10)
    ours = make_optimizer(schedule, **SETTINGS)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.1),
    )
    results = []
    for tx in (ours, theirs):
        params = {"layer": {"kernel": parameters()["layer"]["kernel"]}}
        opt_state, update = tx.init(params), jax.jit(tx.update)
        for grad in np.random.default_rng(3).normal(size=(10, 3, 4)).astype(np.float32):
            updates, opt_state = update({"layer": {"kernel": grad}}, opt_state, params)
            params = optax.apply_updates(params, updates)
        results.append(params["layer"]["kernel"])
    np.testing.assert_allclose(*results, atol=1e-6)  # float32


def test_a_state_of_bfloat16_moments_is_placed_saved_and_restored(tmp_path):
    """Oracle: the state before; bfloat16[8, 4] moments where the parameter lies, and none of router_bias."""
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    params = {"kernel": jnp.arange(32.0).reshape(8, 4), "router_bias": jnp.ones(4)}
    placed = shardings(mesh, {"kernel": ("embed", "mlp"), "router_bias": ("experts",)}, params)
    tx = make_optimizer(
        make_schedule(0.1, num_steps=2), **SETTINGS, moment_dtype="bfloat16", trained_parts=("mtp",)
    )
    wanted = state_shardings(mesh, placed, params, tx)

    def update(state):
        _, opt_state = tx.update(params, state.opt_state, params)
        return state.replace(opt_state=opt_state)

    fresh = jax.jit(lambda: TrainState.create(params, tx), out_shardings=wanted)()
    state = jax.jit(update, out_shardings=wanted)(fresh)
    with Store(tmp_path) as store:
        store.save(1, {"state": state, "data": {}})
        restored = store.restore(1, fresh)["state"]
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    found = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    kept = [leaf for path, leaf in found.items() if "mu" in path or "nu" in path]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16] * 2
    assert [leaf.sharding.spec for leaf in kept] == [
        P(("fsdp", "context"), ("tensor", "expert"))
    ] * 2
    assert all((leaf != 0).sum() == 31 for leaf in kept)  # all but the first, whose gradient is 0
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, state)


@pytest.mark.parametrize("max_grad_norm", [0.5, 1e6])
def test_a_sharded_update_is_clipped_by_the_norm_of_all_gradients(max_grad_norm):
    """Oracle: the update on one device; the norm of 40 is clipped to 0.5, or not at all. Each device has an
    eighth of the kernel and half of the scale.
    """
    rng = np.random.default_rng(0)
    params, grads = (
        {"kernel": rng.normal(size=(16, 96)), "scale": rng.normal(size=8)} for _ in range(2)
    )
    params, grads = jax.tree.map(np.float32, (params, grads))
    settings = SETTINGS | dict(max_grad_norm=max_grad_norm)
    tx = make_optimizer(optax.constant_schedule(0.1), **settings)

    def two_updates(params, grads):
        opt_state = tx.init(params)
        for scale in (1.0, -0.3):
            scaled = jax.tree.map(lambda g: scale * g, grads)  # noqa: B023
            updates, opt_state = tx.update(scaled, opt_state, params)
            params = optax.apply_updates(params, updates)
        return params, optax.tree.norm(grads)

    wanted, norm = jax.jit(two_updates)(params, grads)
    assert 35 < norm < 45
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    places = shardings(mesh, {"kernel": ("embed", "mlp"), "scale": ("mlp",)}, params)
    with jax.set_mesh(mesh):
        sharded = jax.device_put((params, grads), (places, places))
        found, _ = jax.jit(two_updates)(*sharded)
    assert found["kernel"].sharding.shard_shape((16, 96)) == (4, 48)
    close = dict(rtol=1e-6, atol=1e-6)  # float32 sums in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), found, wanted)
