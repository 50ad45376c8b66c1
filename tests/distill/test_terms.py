"""Named terms: their sum, and that none of them is idle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.distill.feature_distillation import hidden_state_loss, init_projections
from deepseek_jax.distill.logit_distillation import dense_distillation
from deepseek_jax.distill.relation_distillation import relation_loss
from deepseek_jax.distill.terms import check_terms, combine_terms, gradient_norms, token_mean
from tests.distill.test_logit_distillation import inputs


def test_the_loss_is_the_weighted_sum_and_metrics_are_unweighted():
    """Oracle: by hand: 0.75 * 4 + 0.25 * 2; gradients are the weights, and metrics have none."""
    weights = {"soft": 0.75, "hard": 0.25}
    values = {"soft": jnp.float32(4), "hard": jnp.float32(2)}
    loss, metrics = combine_terms(weights, values)
    assert loss == 3.5 and metrics == values
    assert jax.grad(lambda x: combine_terms(weights, x)[0])(values) == weights
    of_metrics = jax.grad(lambda x: sum(combine_terms(weights, x)[1].values()))(values)
    assert of_metrics == {"soft": 0, "hard": 0}


def test_a_weight_of_zero_leaves_a_term_out():
    """Oracle: by hand: a term of NaN does no harm, also to the gradient; its metric is still there."""
    weights, values = (
        {"soft": 1.0, "hidden": 0},
        {"soft": jnp.float32(2), "hidden": jnp.float32(jnp.nan)},
    )
    loss, metrics = combine_terms(weights, values)
    assert loss == 2 and jnp.isnan(metrics["hidden"])
    assert jax.grad(lambda x: combine_terms(weights, x)[0])(values) == {"soft": 1, "hidden": 0}


@pytest.mark.parametrize("names", [{"soft"}, {"soft", "hard", "hidden"}, {"soft", "herd"}])
def test_names_that_differ_are_an_error(names):
    """Oracle: the message, by hand."""
    with pytest.raises(ValueError, match="config.loss.weights names .*; give each"):
        combine_terms(dict.fromkeys(names, 1.0), dict.fromkeys(["soft", "hard"], jnp.float32(1)))


def test_micro_batches_add_up():
    """Oracle: the whole batch's mean over masked tokens, by numpy; NaN where masked does not matter."""
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(6, 5)).astype(np.float32), rng.random((6, 5)) < 0.6
    x = np.where(mask, x, np.nan)
    parts = [token_mean(x[i : i + 2], mask[i : i + 2], mask.sum()) for i in (0, 2, 4)]
    np.testing.assert_allclose(sum(parts), np.nanmean(x), rtol=1e-5)
    assert token_mean(x, np.zeros_like(mask), 0) == 0


def test_gradient_norms_are_those_of_each_term_alone():
    """Oracle: by hand: the gradients of 3a + b, of b^2 at 2, and of a number."""

    def terms(params):
        return {
            "soft": 3 * params["a"] + params["b"],
            "hard": params["b"] ** 2,
            "idle": jnp.float32(7),
        }

    values, norms = gradient_norms(terms, {"a": jnp.float32(1), "b": jnp.float32(2)})
    assert values == {"soft": 5, "hard": 4, "idle": 7}
    np.testing.assert_allclose([norms[n] for n in ("soft", "hard", "idle")], [10**0.5, 4, 0])


GOOD = dict(soft=0.5, hard=0.3, hidden=2.0)


@pytest.mark.parametrize(
    "values, norms, complaint",
    [
        (dict(hidden=0.0), {}, r"config.loss.weights.hidden=0.1, and the term's value is 0"),
        ({}, dict(hard=0.0), r"config.loss.weights.hard=0.25, and the term's gradient norm is 0"),
        (dict(soft=float("nan")), {}, r"config.loss.weights.soft=0.75, .* value is nan"),
        ({}, dict(soft=float("inf")), r"config.loss.weights.soft=0.75, .* gradient norm is inf"),
        (dict(soft=0.0), dict(hard=0.0), r"weights.soft=.*; config.loss.weights.hard="),
    ],
)
def test_an_idle_term_is_named(values, norms, complaint):
    """Oracle: the field and what was found, by hand."""
    weights = dict(soft=0.75, hard=jnp.float32(0.25), hidden=0.1)
    check_terms(weights, GOOD, GOOD)
    with pytest.raises(ValueError, match=complaint):
        check_terms(weights, GOOD | values, GOOD | norms)


def test_an_idle_term_that_nobody_asked_for_is_fine():
    """Oracle: no error, by hand."""
    check_terms(dict(soft=1.0, hard=0.0), dict(soft=0.5, hard=0.0), dict(soft=2.0, hard=0.0))


def student_terms(params, teacher_hidden, teacher_head, targets, mask):
    """Four terms of a student whose hidden states are a parameter, [3 m d] by layers."""
    soft, hard = dense_distillation(
        params["hidden"][-1],
        params["head"],
        targets,
        teacher_hidden[-1],
        teacher_head,
        divergence="forward_kl",
        temperature=2.0,
    )
    hidden = hidden_state_loss(
        params["hidden"][:, None], teacher_hidden[:, None], params["projections"]
    )[0]
    segments = jnp.ones((1, len(targets)), jnp.int32)
    relations = relation_loss(params["hidden"][:1], teacher_hidden[:1], segments, relation_heads=4)[
        0
    ]
    terms = dict(soft=soft, hard=hard, hidden=hidden, relations=relations)
    return {name: token_mean(x, mask, mask.sum()) for name, x in terms.items()}


def test_each_term_reaches_what_it_should_and_the_check_sees_what_it_does_not():
    """Oracle: by hand, which parameters a term reads: soft and hard the last layer and the head; hidden all
    layers and the projections; relations the first layer alone. With nothing under the mask, all are named.
    """
    (last, head, targets), (teacher_last, teacher_head) = inputs()
    rng = np.random.default_rng(7)
    layers = jnp.stack([jnp.float32(rng.normal(size=last.shape)) for _ in range(2)] + [last])
    teacher = jnp.stack([jnp.float32(rng.normal(size=teacher_last.shape)) for _ in range(3)])
    projections = init_projections(jax.random.key(0), 3, last.shape[-1], teacher_last.shape[-1])
    params = dict(hidden=layers, head=head, projections=projections)
    mask = jnp.arange(len(targets)) > 3

    def terms(params, mask=mask):
        return student_terms(params, teacher, teacher_head, targets, mask)

    reads = dict(
        soft=[(2,), True, False],
        hard=[(2,), True, False],
        hidden=[(0, 1, 2), False, True],
        relations=[(0,), False, False],
    )
    for name, (read_layers, reads_head, reads_projections) in reads.items():
        gradient = jax.grad(lambda p, n=name: terms(p)[n])(params)
        moved = jnp.abs(gradient["hidden"]).max((1, 2)) > 0
        assert np.flatnonzero(moved).tolist() == list(read_layers), name
        assert bool((gradient["head"] != 0).any()) == reads_head, name
        assert bool((gradient["projections"] != 0).any()) == reads_projections, name

    weights = dict.fromkeys(reads, 0.25)
    check_terms(weights, *gradient_norms(terms, params))
    idle = gradient_norms(lambda p: terms(p, jnp.zeros_like(mask)), params)
    with pytest.raises(ValueError) as error:
        check_terms(weights, *idle)
    assert all(f"config.loss.weights.{name}=" in str(error.value) for name in weights)
