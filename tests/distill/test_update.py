"""The check of a student's terms before its first update."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from deepseek_jax.distill.objective import Objective
from deepseek_jax.distill.source import sampled_rows
from deepseek_jax.distill.update import check_first
from tests.tiny import tiny_model

STUDENT, PARAMS = tiny_model("gqa")
TEACHER = jax.tree.map(lambda leaf: 1.1 * leaf, PARAMS)
MADE = Objective(student=STUDENT, teacher=STUDENT, weights=dict(soft=0.5, hard=0.25))


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


def test_terms_are_looked_at_in_micro_batches():
    """Oracle: the whole batch's values; a term that acts in one micro-batch alone passes the check."""
    batch = batch_of(([1, 2], [3, 4, 5]), ([7], []))
    values = [
        check_first(dataclasses.replace(MADE, micro_batches=parts), PARAMS, batch, TEACHER)
        for parts in (1, 2)
    ]
    for name in ("soft", "hard"):
        np.testing.assert_allclose(values[0][name], values[1][name], rtol=1e-5)
