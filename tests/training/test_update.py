"""The one update of every recipe, and what stands around it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepseek_jax.models.moe import Routing
from deepseek_jax.ops.fingerprint import fingerprint
from deepseek_jax.parallel import make_mesh, put_batch
from deepseek_jax.training import update as module
from deepseek_jax.training.micro_batches import over_micro_batches
from deepseek_jax.training.optimizer import make_optimizer
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import (
    Reference,
    Update,
    UpdateOptions,
    create_update,
    jit_placed,
    make_train_step,
    update_of,
)
from tests.recipes.small import one_device

PROMPTS, GROUP, WIDTH, EXPERTS = 4, 4, 3, 5
TX = optax.sgd(0.5)


def loss_fn(params, batch, rng):
    """Least squares on features of a completion and its prompt, one prompt to GROUP completions."""
    prompts = jnp.repeat(batch["prompts"], GROUP, axis=0)
    error = (prompts * batch["completions"]) @ params["kernel"] - batch["targets"]
    load_e = jax.nn.one_hot(batch["experts"], EXPERTS).sum(0)
    metrics = {
        "error": jnp.abs(error).sum() / batch["num_completions"],
        "error_max": jnp.abs(error).max(),
        "routing": {
            "moe_layers": Routing(jnp.stack([load_e, load_e[::-1]]), jnp.zeros(2), jnp.zeros(2)),
            "mtp_0": Routing(2 * load_e, jnp.zeros(()), jnp.zeros(())),
        },
    }
    return (error**2).sum() / batch["num_completions"], metrics


def make_batch():
    rng = np.random.default_rng(0)
    rows = PROMPTS * GROUP
    return {
        "prompts": rng.normal(size=(PROMPTS, WIDTH)).astype(np.float32),
        "completions": rng.normal(size=(rows, WIDTH)).astype(np.float32),
        "targets": rng.normal(size=rows).astype(np.float32),
        "experts": rng.integers(0, EXPERTS, rows),
        "num_completions": np.float32(rows),
    }


def make_state():
    kernel = jnp.asarray([1.0, -2.0, 0.5])
    bias = {
        "moe_layers": {"ffn": {"router_bias": jnp.full((2, EXPERTS), 0.25)}},
        "mtp_0": {"block": {"ffn": {"router_bias": jnp.full(EXPERTS, 0.5)}}},
        "mtp_1": {"block": {"ffn": {"router_bias": jnp.full(EXPERTS, 0.5)}}},
    }
    return TrainState.create({"kernel": kernel} | bias, TX)


def run(state=None, batch=None, **settings):
    if "speed" in settings:
        settings["bias_update_speed"] = optax.constant_schedule(settings.pop("speed"))
    step = jax.jit(make_train_step(loss_fn, TX, **settings))
    return step(state or make_state(), batch or make_batch(), jax.random.key(0))


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_gradients_and_metrics_are_those_of_the_whole_batch(micro_batches):
    """Oracle: the least-squares gradient by numpy in float64, each prompt found by index."""
    state, metrics = run(micro_batches=micro_batches)
    batch, kernel = make_batch(), np.array([1.0, -2.0, 0.5])
    completions = enumerate(batch["completions"])
    features = np.array([batch["prompts"][i // GROUP] * x for i, x in completions])
    error = features @ kernel - batch["targets"]
    grad = 2 * features.T @ error / len(error)
    close = dict(rtol=1e-5)  # float32 sums of 16 terms
    np.testing.assert_allclose(state.params["kernel"], kernel - 0.5 * grad, **close)
    np.testing.assert_allclose(metrics["loss"], (error**2).mean(), **close)
    np.testing.assert_allclose(metrics["error"], np.abs(error).mean(), **close)
    np.testing.assert_allclose(metrics["error_max"], np.abs(error).max(), **close)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(grad), **close)
    assert state.step == 1 and metrics["nonfinite"] == 0


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_router_bias_moves_by_the_sign_of_the_load_of_the_whole_batch(micro_batches):
    """Oracle: counts by numpy.bincount; bias + 0.1 * sign(mean - count), once an update; a module whose
    load the loss does not report keeps its bias.
    """
    state, metrics = run(micro_batches=micro_batches, speed=0.1)
    load = np.bincount(make_batch()["experts"], minlength=EXPERTS)
    wanted = 0.25 + 0.1 * np.sign(load.mean() - np.stack([load, load[::-1]]))
    bias = state.params["moe_layers"]["ffn"]["router_bias"]
    np.testing.assert_allclose(bias, wanted, rtol=1e-6)  # float32
    mtp = [state.params[f"mtp_{i}"]["block"]["ffn"]["router_bias"] for i in (0, 1)]
    np.testing.assert_allclose(mtp[0], wanted[0] + 0.25, rtol=1e-6)
    np.testing.assert_array_equal(mtp[1], 0.5)
    np.testing.assert_allclose(metrics["max_vio"], load.max() / load.mean() - 1, rtol=1e-6)
    assert "routing" not in metrics


def test_router_bias_stays_without_a_speed():
    """Oracle: the bias before."""
    state, _ = run()
    np.testing.assert_array_equal(state.params["moe_layers"]["ffn"]["router_bias"], 0.25)


def test_the_bias_speed_follows_the_update_count():
    """Oracle: by hand: 0.1 at update 0, nothing from update 1 on."""
    speed = optax.piecewise_constant_schedule(0.1, {1: 0.0})
    step = jax.jit(make_train_step(loss_fn, TX, bias_update_speed=speed))
    first, _ = step(make_state(), make_batch(), jax.random.key(0))
    second, _ = step(first, make_batch(), jax.random.key(0))
    biases = [s.params["moe_layers"]["ffn"]["router_bias"] for s in (make_state(), first, second)]
    assert np.abs(biases[1] - biases[0]).max() > 0.09
    np.testing.assert_array_equal(biases[2], biases[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_with_non_finite_gradients_changes_the_step_count_alone(bad):
    """Oracle: the state before, optimizer moments and their count included."""
    tx = optax.adam(0.1)
    before = TrainState.create(make_state().params, tx)
    step = jax.jit(make_train_step(loss_fn, tx))
    state, metrics = step(before, spoilt_batch(bad), jax.random.key(0))
    assert metrics["nonfinite"] == 1 and state.step == 1
    jax.tree.map(np.testing.assert_array_equal, state.replace(step=before.step), before)


def spoilt_batch(bad):
    """Targets that spoil the loss and leave the loads as they are."""
    batch = make_batch()
    batch["targets"][3] = bad
    return batch


def test_after_a_skipped_update_the_rate_is_that_of_the_step_count():
    """Oracle: by hand: rates of 1, 0.5, 0.25 an update; the second is skipped, and the third moves by 0.25
    times Adam's direction, which for gradients of one sign is 1 if its moments have counted two updates.
    """
    schedule = optax.exponential_decay(1.0, 1, 0.5)
    tx = make_optimizer(schedule, b1=0.9, b2=0.95, weight_decay=0.0, max_grad_norm=1e9)
    step = jax.jit(make_train_step(lambda p, batch, rng: (batch["sign"] * p["w"].sum(), {}), tx))
    state = TrainState.create({"w": jnp.zeros(3)}, tx)
    places = []
    for sign in (1.0, np.nan, 1.0):
        state, _ = step(state, {"sign": np.float32(sign)}, jax.random.key(0))
        places.append(np.asarray(state.params["w"]))
    np.testing.assert_allclose(places, [[-1.0] * 3, [-1.0] * 3, [-1.25] * 3], rtol=1e-6)


def test_a_skipped_update_moves_the_biases_of_layers_whose_load_is_finite():
    """Oracle: the biases after the same batch with a finite loss; those of the layer without a count as
    before, and all other parameters.
    """

    def with_a_nan_load(params, batch, rng):
        loss, metrics = loss_fn(params, batch, rng)
        stack = metrics["routing"]["moe_layers"]
        metrics["routing"]["moe_layers"] = stack._replace(load=stack.load.at[1, 2].set(jnp.nan))
        return loss, metrics

    speed = optax.constant_schedule(0.1)
    step = jax.jit(make_train_step(with_a_nan_load, TX, bias_update_speed=speed))
    state, metrics = step(make_state(), spoilt_batch(np.nan), jax.random.key(0))
    wanted, _ = run(speed=0.1)
    assert metrics["nonfinite"] == 1
    np.testing.assert_array_equal(state.params["kernel"], make_state().params["kernel"])
    biases, theirs = (s.params["moe_layers"]["ffn"]["router_bias"] for s in (state, wanted))
    np.testing.assert_array_equal(biases, [theirs[0], [0.25] * EXPERTS])
    for name in ("mtp_0", "mtp_1"):
        jax.tree.map(np.testing.assert_array_equal, state.params[name], wanted.params[name])


def test_rng_differs_by_update_and_by_micro_batch():
    """Oracle: four draws, two updates of two micro-batches, all different."""

    def noise(params, batch, rng):
        draw = jax.random.uniform(rng)
        return params["x"] * 0, {"sum": draw, "one_max": draw}

    state = TrainState.create({"x": jnp.zeros(())}, TX)
    step = jax.jit(make_train_step(noise, TX, micro_batches=2))
    draws = set()
    for _ in range(2):
        state, metrics = step(state, {"rows": np.zeros(2)}, jax.random.key(0))
        larger, total = float(metrics["one_max"]), float(metrics["sum"])
        draws |= {round(larger, 5), round(total - larger, 5)}
    assert len(draws) == 4


def test_a_schedule_by_performance_follows_what_it_is_told():
    """Oracle: by hand: an evaluation every two updates, whose result both updates get; the rate is halved
    when one is not lower than the best by a tenth. With gradients of 1 an update of plain descent is the rate
    itself.
    """
    follow = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.1, accumulation_size=2)
    tx = optax.chain(optax.sgd(1.0), follow)
    step = jax.jit(make_train_step(lambda p, b, r: (p["w"].sum(), {}), tx, watched="held_out"))
    state = TrainState.create({"w": jnp.zeros(1)}, tx)
    moved = []
    for told in (4.0, 4.0, 2.0, 2.0, 1.95, 1.95, 1.0, 1.0, 1.0, 1.0):
        before = state.params["w"]
        state, _ = step(state, {"held_out": np.float32(told)}, jax.random.key(0))
        moved.append(float((before - state.params["w"])[0]))
    assert moved == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_rows_that_do_not_split_into_micro_batches_are_refused():
    """Oracle: 16 completions into 3; the message names the key and the setting."""
    with pytest.raises(ValueError, match=r"batch\['completions'\] has 16 rows.*micro_batches=3"):
        run(micro_batches=3)


def test_a_bias_speed_without_experts_is_refused():
    """Oracle: a loss that reports no routing."""

    def dense(params, batch, rng):
        return loss_fn(params, batch, rng)[0], {}

    step = make_train_step(dense, TX, bias_update_speed=optax.constant_schedule(0.1))
    with pytest.raises(ValueError, match="a bias_update_speed needs experts.*to 0"):
        jax.eval_shape(step, make_state(), make_batch(), jax.random.key(0))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_sharded_update_equals_that_of_one_device(micro_batches):
    """Oracle: the same update on one device; here rows are split in two, over four copies."""
    wanted, wanted_metrics = run(micro_batches=micro_batches, speed=0.1)
    mesh = make_mesh(data=2, tensor=4)
    with jax.set_mesh(mesh):
        batch = put_batch(mesh, make_batch())
        state, metrics = run(None, batch, micro_batches=micro_batches, speed=0.1)
    close = dict(rtol=1e-5, atol=1e-6)  # float32 sums in another order
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), state, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), metrics, wanted_metrics)


def test_micro_batches_are_split_over_the_devices_and_not_dealt_out_to_them():
    """Oracle: rows that a device sees at a time: 16 / 2 micro-batches / 4 devices, not 4 or 8."""

    def loss(params, batch, rng):
        hidden = jnp.tanh(batch["rows"] @ params["kernel"])
        return (hidden**2).sum(), {}

    mesh = make_mesh(data=4, tensor=2)
    state = TrainState.create({"kernel": jnp.ones((WIDTH, 7))}, TX)
    with jax.set_mesh(mesh):
        batch = put_batch(mesh, {"rows": np.ones((16, WIDTH), np.float32)})
        step = jax.jit(make_train_step(loss, TX, micro_batches=2))
        program = step.lower(state, batch, jax.random.key(0)).compile().as_text()
    assert "f32[2,7]" in program and "f32[4,7]" not in program and "f32[8,7]" not in program


def descent(params, batch, rng, *more):
    """The sum of the weights times the rows, whose gradient is the rows' sum."""
    return (batch["rows"] * params["w"]).sum() * (more[0] if more else 1), {
        "one_max": batch["rows"]
    }


def made(beside=UpdateOptions(), trained_parts=(), **more):  # noqa: B008
    """(state, Update) of plain descent with two micro-batches on one device."""
    mesh, asked = one_device(), []

    def make(*, trained_parts):
        asked.append(trained_parts)
        return optax.sgd(1.0)

    optimizer = SimpleNamespace(moment_memory="device")
    settings = SimpleNamespace(make_optimizer=make, optimizer=optimizer, micro_batches=2)
    everywhere = jax.NamedSharding(mesh, jax.P())
    params = {"w": jax.device_put(np.float32(5), everywhere)}
    create, update = create_update(
        settings, descent, params, mesh, trained_parts=trained_parts, beside=beside, **more
    )
    assert asked == [trained_parts]
    return create(params), update


def step_of(state, update, batch=(), *more):
    batch = {"rows": np.float32([1, 2])} | dict(batch)
    return update(state, batch, jax.random.key(0), *more)


@pytest.mark.parametrize("sampled_by, stale", [(None, None), (0, 0.0), ("own", 0.0), (7, 1.0)])
def test_an_update_knows_who_sampled_its_batch(sampled_by, stale):
    """Oracle: by hand: the fingerprint of the parameters before the update; 0 says nothing."""
    state, update = made()
    own = int(fingerprint(state.model))
    assert own not in (0, 7)
    number = own if sampled_by == "own" else sampled_by
    number = {} if number is None else {"sampled_by": np.uint32(number)}
    _, metrics = step_of(state, update, number)
    assert metrics.get("stale_params") == stale


def test_an_update_gives_the_loss_what_else_there_is_and_reports():
    """Oracle: by hand: three times the rows' sum of 3 is the gradient; what is reported is of the state after
    it. The settings' two micro-batches have a row each, unless it is said otherwise.
    """
    report = UpdateOptions(report=lambda state: {"after": state.params["w"]})
    state, update = made(report, trained_parts=("mtp",))
    state, metrics = step_of(state, update, (), np.float32(3))
    assert metrics["after"] == state.params["w"] == 5 - 9 and metrics["one_max"].shape == (1,)
    state, update = made(micro_batches=1)
    assert step_of(state, update)[1]["one_max"].shape == (2,)


def test_a_watched_number_reaches_the_optimizer(monkeypatch):
    """Oracle: by hand: the update is minus the number of the batch."""
    init = lambda params: optax.EmptyState()  # noqa: E731

    def follow(grads, state, params, *, value, **more):
        return jax.tree.map(lambda g: -value + 0 * g, grads), state

    tx = optax.GradientTransformationExtraArgs(init, follow)
    monkeypatch.setattr(optax, "sgd", lambda rate: tx)
    state, update = made(UpdateOptions(watched="told"))
    state, _ = step_of(state, update, {"told": np.float32(2)})
    assert state.params["w"] == 3


def test_a_reference_is_replaced_after_so_many_updates():
    """Oracle: by hand: after the second and the fourth, counted from the state's own step."""
    mesh = one_device()
    places = {"w": jax.NamedSharding(mesh, jax.P())}
    reference = Reference(2, lambda params: jax.tree.map(jnp.copy, params), places)
    for first, wanted in ((0, [5, -1, -1, -7]), (1, [2, 2, -4, -4])):
        state, update = made(UpdateOptions(reference=reference))
        state = state.replace(
            reference={"w": jax.device_put(np.float32(5), places["w"])},
            step=jax.device_put(np.int32(first), places["w"]),
        )
        found = []
        for _ in range(4):
            state, _ = step_of(state, update)
            found.append(float(state.reference["w"]))
        assert found == wanted


def test_a_function_is_applied_to_each_micro_batch():
    """Oracle: by hand: rows in two parts, each with the number that all have."""
    batch = {"rows": np.float32([[1], [2], [3], [4]]), "scale": np.float32(10)}
    found = over_micro_batches(lambda part: part["rows"].sum() * part["scale"], batch, 2)
    assert found.tolist() == [30, 70]


def three_rows():
    return {"rows": np.float32([1, 2, 4])}, jax.random.key(0)


def test_an_update_is_of_a_whole_batch_where_nothing_is_said():
    """Oracle: by hand: three rows, which do not split."""
    state = TrainState.create({"w": jnp.zeros(())}, TX)
    placed = jax.tree.map(lambda _: jax.NamedSharding(one_device(), jax.P()), state)
    for step in (make_train_step(descent, TX), Update(descent, TX, placed)):
        after, _ = step(jax.device_put(state, placed), *three_rows())
        assert after.params["w"] == -3.5


def test_an_update_of_a_recipe_balances_its_experts():
    """Oracle: the biases of make_train_step with the same speed."""
    wanted, _ = run(speed=0.1)
    everywhere = jax.NamedSharding(one_device(), jax.P())
    optimizer = SimpleNamespace(moment_memory="device")
    settings = SimpleNamespace(
        make_optimizer=lambda trained_parts: TX, optimizer=optimizer, micro_batches=1
    )
    beside = UpdateOptions(bias_update_speed=optax.constant_schedule(0.1))
    params = jax.device_put(make_state().params, everywhere)
    create, update = create_update(settings, loss_fn, params, one_device(), beside=beside)
    state, _ = update(create(params), make_batch(), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, state.params, wanted.params)


@pytest.mark.parametrize("overflows, wanted", [((None, None), None), (([1.0, 2.0], 4.0), 7.0)])
def test_tokens_beyond_the_buffers_of_experts_are_summed(overflows, wanted):
    """Oracle: by hand, over the layers of a stack and a module; without buffers there is no such metric."""
    loads = jnp.ones((2, EXPERTS)), jnp.ones(EXPERTS)
    overflows = (each if each is None else jnp.asarray(each) for each in overflows)
    pairs = zip(("moe_layers", "mtp_0"), loads, overflows, strict=True)
    routing = {name: Routing(load, jnp.zeros(()), each) for name, load, each in pairs}
    state = TrainState.create({"w": jnp.zeros(())}, TX)
    _, metrics = update_of(TX)(state, {"w": jnp.ones(())}, {"loss": 1.0, "routing": routing})
    assert metrics.get("expert_overflows") == wanted


def test_a_program_places_its_result_and_takes_the_options_of_its_chip(monkeypatch):
    """Oracle: by hand: numbers that every device has are split as the tree is; a CPU has no options."""
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    split = jax.NamedSharding(mesh, jax.P("data"))
    step, x = (
        jit_placed(lambda x: (jnp.broadcast_to(x.sum(), x.shape), {}), split),
        np.float32([1, 2]),
    )
    x = jax.device_put(x, split)
    found, _ = step(x)
    assert found.tolist() == [3, 3] and found.sharding == split and x.is_deleted()
    given, asked = [], []
    monkeypatch.setattr(module.jax, "jit", lambda function, **more: given.append(more))
    for chip in (None, SimpleNamespace(options={"fast": True})):
        monkeypatch.setattr(
            module, "chip_of", lambda devices, chip=chip: asked.append(len(devices)) or chip
        )
        jit_placed(None, split)
    assert [more["compiler_options"] for more in given] == [None, {"fast": True}]
    assert asked == [2, 2]
