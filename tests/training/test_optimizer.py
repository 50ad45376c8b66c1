import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.training.optimizer import make_optimizer, make_schedule

SETTINGS = dict(b1=0.9, b2=0.95, weight_decay=0.1, max_grad_norm=1.0)


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


def test_multi_token_prediction_keeps_its_weights_and_has_no_moments():
    """Oracle: the weights before, which decay alone would move; the paths of the state's arrays."""
    tx = make_optimizer(make_schedule(0.01, num_steps=10), **SETTINGS)
    params = parameters() | {"mtp_0": parameters()["layer"]}
    opt_state = tx.init(params)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(opt_state)]
    assert not any("mtp_0" in path for path in paths)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), opt_state, params)
    after = optax.apply_updates(params, updates)
    jax.tree.map(np.testing.assert_array_equal, after["mtp_0"], params["mtp_0"])
    assert (after["layer"]["kernel"] != params["layer"]["kernel"]).all()


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", {0: 0.25, 1: 0.5, 3: 1.0, 13: 1.0}),
        ("cosine", {0: 0.25, 1: 0.5, 3: 1.0, 8: 0.55, 13: 0.1, 20: 0.1}),
    ],
)
def test_schedule_rises_linearly_then_holds_or_falls_to_the_final_fraction(schedule, wanted):
    """Oracle: by hand: (i + 1) / (3 + 1) up to i = 3; half-way down the cosine (1 + 0.1) / 2."""
    rate = make_schedule(2.0, schedule=schedule, warmup_steps=3, num_steps=13)
    for step, value in wanted.items():
        np.testing.assert_allclose(rate(step), 2.0 * value, rtol=1e-6)  # float32


def test_schedule_without_warm_up_starts_at_the_full_rate():
    """Oracle: the learning rate itself."""
    for schedule in ("constant", "cosine"):
        assert float(make_schedule(0.5, schedule=schedule, num_steps=4)(0)) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(schedule="linear"), "schedule='linear' is unknown.*'constant', 'cosine'"),
        (dict(learning_rate=-1.0), "learning_rate=-1.0"),
        (dict(warmup_steps=10), "warmup_steps=10 must be at least 0 and below num_steps=10"),
    ],
)
def test_schedule_refuses_what_makes_no_sense(change, message):
    """Oracle: the message names what was given."""
    with pytest.raises(ValueError, match=message):
        make_schedule(**(dict(learning_rate=0.1, num_steps=10) | change))
