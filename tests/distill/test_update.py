"""The training of a student, and the check of its terms before the first update."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.distill import update
from deepseek_jax.distill.feature_distillation import init_projections
from deepseek_jax.distill.objective import Objective
from deepseek_jax.distill.settings import LossSettings, OnPolicySettings
from deepseek_jax.distill.source import HELD_OUT_LOSS, sampled_rows
from deepseek_jax.distill.update import check_first, jitted_update, train_student
from deepseek_jax.recipes.distill.settings import PlateauSettings, StudentSettings
from deepseek_jax.training.loop import LOSS_TERMS
from deepseek_jax.training.optimizer import OptimizerSettings
from tests.recipes.small import one_device
from tests.tiny import tiny_model

STUDENT, PARAMS = tiny_model("gqa")
TEACHER = jax.tree.map(lambda leaf: 1.1 * leaf, PARAMS)
MADE = Objective(student=STUDENT, teacher=STUDENT, weights=dict(soft=0.5, hard=0.25))


SAMPLES = OnPolicySettings(prompts=2, max_completion_length=4)


def batch_of(*pairs):
    return sampled_rows(pairs, 8) | {"temperature": np.float32(1)}


def test_a_term_that_does_nothing_is_an_error():
    """Oracle: by hand: a student that is its teacher has no distance to it, and a gradient of 0."""
    batch = batch_of(([1, 2], [3, 4, 5]))
    with pytest.raises(ValueError, match="^weights.soft=0.5, and the term's") as error:
        check_first(MADE, PARAMS, batch, PARAMS)
    assert "weights.hard" not in str(error.value)


def test_a_mask_that_leaves_nothing_makes_every_term_idle():
    """Oracle: by hand: no token is in the loss; terms without a weight are not checked."""
    batch = batch_of(([1, 2], [3, 4, 5]))
    batch["loss_mask"] = np.zeros_like(batch["loss_mask"])
    made = dataclasses.replace(MADE, weights=MADE.weights | {"hidden": 0.0})
    with pytest.raises(ValueError) as error:
        check_first(made, PARAMS, batch, TEACHER)
    named = [name for name in ("soft", "hard", "hidden") if f"weights.{name}=" in str(error.value)]
    assert named == ["soft", "hard"]


def test_values_and_gradients_are_those_of_the_loss(capsys):
    """Oracle: the metrics of the objective's loss, and the norm of the gradient of a loss that has one weight
    alone, as printed, to three digits.
    """
    batch = batch_of(([1, 2], [3, 4, 5]), ([7], [8, 9]))
    values = check_first(MADE, PARAMS, batch, TEACHER)
    said = capsys.readouterr().out
    _, metrics = jax.jit(MADE.loss)(PARAMS, batch, teacher_params=TEACHER)
    for name, value in metrics.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-5)
        alone = dataclasses.replace(MADE, weights={name: 1.0})
        gradient = jax.jit(
            jax.grad(lambda p, alone=alone: alone.loss(p, batch, teacher_params=TEACHER)[0])
        )
        assert f"{name} {value:.4g} (gradient {optax.tree.norm(gradient(PARAMS)):.3g})" in said


def test_projections_stand_beside_the_student():
    """Oracle: the objective's loss of both."""
    batch, made = batch_of(([1, 2], [3, 4, 5])), dataclasses.replace(MADE, weights=dict(hidden=0.5))
    widths = STUDENT.hidden_size, STUDENT.hidden_size
    matrices = init_projections(jax.random.key(0), STUDENT.num_hidden_layers, *widths)
    params = {"student": PARAMS, "projections": matrices}
    loss = jax.jit(dataclasses.replace(made, weights=dict(hidden=1.0)).loss)
    wanted, _ = loss(params, batch, teacher_params=TEACHER)
    (value,) = check_first(made, params, batch, TEACHER).values()
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_terms_are_looked_at_in_micro_batches():
    """Oracle: the whole batch's values; a term that acts in one micro-batch alone passes the check."""
    batch = batch_of(([1, 2], [3, 4, 5]), ([7], []))
    values = [
        check_first(dataclasses.replace(MADE, micro_batches=parts), PARAMS, batch, TEACHER)
        for parts in (1, 2)
    ]
    for name in ("soft", "hard"):
        np.testing.assert_allclose(values[0][name], values[1][name], rtol=1e-5)


@pytest.mark.parametrize(
    "loss, frozen, needed, untrained",
    [
        (dict(hard=1.0), None, (64, True, False), ()),
        (dict(soft=1.0), {"base": 0}, (64, False, True), ()),
        (dict(relations=1.0), None, (64, False, False), ("",)),
        (dict(on_policy=1.0), None, (64, False, False), ()),
    ],
)
def test_what_the_loop_is_given(monkeypatch, loss, frozen, needed, untrained):
    """Oracle: by hand: the FLOPs of a token, what may be without a gradient, and calls with the teacher's
    parameters, which the loop does not know.
    """
    calls = {}

    class Step:
        def __call__(self, *given):
            return "stepped", given

        def locate(self, *given):
            return "located", given

    def fake_train(settings, state, step, source, run, seed, checks, flops):
        calls.update(state=state, checks=checks, flops=flops, rest=(source, run, seed))
        calls["step"], calls["locate"] = step(1, 2, 3), checks.locate(1, 2, 3)
        checks.before_first(state, "batch")
        return state

    def broken(*given):
        calls["first"] = given
        raise ValueError("weights.soft=1.0")

    on_policy = dict(on_policy=SAMPLES) if "on_policy" in loss else {}
    settings = SimpleNamespace(loss=LossSettings(weights=loss, **on_policy), sequence_length=64)
    settings.seed = 7
    objective = SimpleNamespace(
        weights=loss, flops_per_token=lambda n, *, cached, frozen: (n, cached, frozen)
    )
    state = SimpleNamespace(model={"head": 0}, frozen=frozen)
    made = lambda params: state, Step()  # noqa: E731
    monkeypatch.setattr(update, "jitted_update", lambda *given: made)
    monkeypatch.setattr(update, "train", fake_train)
    monkeypatch.setattr(update, "check_first", lambda *given: calls.update(first=given))
    run = SimpleNamespace(mesh=None)
    given = settings, objective, "params", "teacher", "source", run
    assert train_student(*given) is state.model
    assert calls["state"] is state and calls["rest"] == ("source", run, 7)
    assert calls["flops"] == needed and calls["checks"].untrained == untrained
    assert calls["checks"].terms == LOSS_TERMS
    assert calls["step"] == ("stepped", (1, 2, 3, "teacher"))
    assert calls["locate"] == ("located", (1, 2, 3, "teacher"))
    assert calls["first"] == (objective, state.model, "batch", "teacher")
    monkeypatch.setattr(update, "check_first", broken)
    with pytest.raises(ValueError, match=r"^loss\.weights\.soft=1\.0"):
        train_student(*given)


def test_an_update_follows_the_plateau_of_the_held_out_loss():
    """Oracle: by hand: the rate is halved after two updates that saw no lower loss than the first, and the
    loss is the objective's. Without a plateau there is no such metric.
    """
    mesh = one_device()
    settings = StudentSettings(
        num_steps=9,
        optimizer=OptimizerSettings(learning_rate=1e-3),
        batch_size=1,
        sequence_length=8,
        eval_every=1,
        start="",
        loss=LossSettings(weights=MADE.weights),
        plateau=PlateauSettings(factor=0.5, patience=2),
    )

    def loss(params, batch, rng, *, teacher_params):
        return (batch["x"] * params["weight"] * teacher_params).sum(), {}

    everywhere = NamedSharding(mesh, PartitionSpec())
    params = {"weight": jax.device_put(np.float32([1, 2]), everywhere)}
    batch = {"x": np.float32([3]), HELD_OUT_LOSS: np.float32(1.5)}
    more = batch, jax.random.key(0), np.float32([4, 5])
    given = SimpleNamespace(loss=loss), params, mesh
    with jax.set_mesh(mesh):
        begin, plain = jitted_update(dataclasses.replace(settings, plateau=None), *given)
        assert "plateau_scale" not in plain.trace(begin.eval_shape(params), *more).out_info[1]
        create, step = jitted_update(settings, *given)
        state, metrics = step(create(params), *more)
        assert metrics["loss"] == 3 * (1 * 4 + 2 * 5)
        scales = [metrics["plateau_scale"]]
        for _ in range(3):
            state, metrics = step(state, *more)
            scales.append(metrics["plateau_scale"])
    assert scales == [1.0, 1.0, 0.5, 0.5]
