"""The clipped loss at its boundaries and in its smallest batches, by hand, uncompiled."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.losses import grpo
from deepseek_jax.losses.advantages import group_advantages
from deepseek_jax.losses.grpo import grpo_loss, k3_kl, make_grpo_loss, metric_weights, row_marks
from deepseek_jax.losses.settings import NORMALIZES_STD, GrpoOptions

# 0.75 and 1.25 are exact
QUARTER = dict(clip_eps=0.25)


def batch_of(advantages, old, sampler=None, **more):
    """Completions of as many tokens as old [b t] has columns."""
    old = np.float32(old)
    return (
        dict(
            completion_mask=np.ones(old.shape, bool),
            advantages=np.float32(advantages),
            old_logprobs=old,
            sampler_logprobs=old if sampler is None else np.float32(sampler),
            num_tokens=np.float32(old.size),
            num_completions=np.float32(len(old)),
        )
        | more
    )


@pytest.mark.parametrize(
    "options, low, high",
    [
        (QUARTER, [1, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0]),
        (QUARTER | dict(ratio_cap=2.0), [1, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 1]),
        (QUARTER | dict(loss_type="cispo"), [0] * 9, [0, 0, 0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_clipping_is_beyond_its_bounds_and_of_advantages_that_have_a_sign(options, low, high):
    """Oracle: by hand: ratios of one half below the bound and at it, at the upper bound and above it, at the
    cap and above it, with advantages of either sign and of none.
    """
    ratio = jnp.float32([[0.5], [0.5], [0.75], [1.25], [1.25], [2.5], [2.5], [2], [2.5]])
    advantage = jnp.float32([[-1], [0], [-1], [1], [1], [0], [1], [-1], [-1]])
    _, found = grpo._surrogate(ratio, jnp.zeros((9, 1)), advantage, GrpoOptions(**options))
    np.testing.assert_array_equal(found["clip_fraction_low"][:, 0], low)
    np.testing.assert_array_equal(found["clip_fraction_high"][:, 0], high)


def test_a_completion_is_off_policy_beyond_the_limit_and_with_a_negative_advantage():
    """Oracle: by hand: drifts of the limit, of twice that without an advantage, and with one."""
    logprobs, drifts = np.full((3, 2), -1, np.float32), np.float32([[0.5], [1], [1]])
    batch = batch_of([-1, 0, -1], logprobs, logprobs + drifts)
    options = GrpoOptions(off_policy_limit=0.5)
    loss, metrics = grpo_loss(logprobs, logprobs, batch, options, max_completion_length=2)
    assert metrics["off_policy_fraction"] == pytest.approx(1 / 3)
    assert loss == pytest.approx(1 / 3)


@pytest.mark.parametrize("loss_type", NORMALIZES_STD)
def test_a_batch_of_one_token_is_divided_by_one(loss_type):
    """Oracle: by hand: a ratio of 1, an advantage of 3; a longest completion of one token is allowed."""
    batch = batch_of([3], [[-2]])
    given = np.float32([[-2]]), np.float32([[0.5]]), batch, GrpoOptions(loss_type)
    loss, metrics = grpo_loss(*given, max_completion_length=1)
    assert loss == pytest.approx(6 if loss_type == "cispo" else -3)
    assert metrics["entropy"] == 0.5 and metrics["ratio_mean"] == 1


def test_gaps_are_large_above_a_hundredth_of_a_nat():
    """Oracle: by hand: gaps of 0.01, 0.015 and 0.005."""
    old, zeros = np.float32([[0.01, 0.015, 0.005]]), np.zeros((1, 3), np.float32)
    batch, options = batch_of([1], old, zeros), GrpoOptions()
    _, metrics = grpo_loss(old, zeros, batch, options, max_completion_length=3)
    names = ("sampler_gap_mean", "sampler_gap_share", "sampler_gap_max")
    assert [metrics[name] for name in names] == pytest.approx([0.01, 1 / 3, 0.015])
    weights = metric_weights(batch, options)
    assert weights["sampler_gap_mean"] == weights["sampler_gap_share"] == 3


def test_log_ratios_end_at_twenty_nats():
    """Oracle: by hand, of 25 nats in either direction."""
    d = jnp.float32([25, -25])
    np.testing.assert_allclose(
        k3_kl(jnp.zeros(2), d), [np.exp(20) - 21, np.exp(-20) + 19], rtol=1e-6
    )
    np.testing.assert_allclose(grpo._token_ratio(d), [np.exp(20), np.exp(-20)], rtol=1e-5)


def test_a_rows_mark_is_that_of_the_sum_of_its_tokens():
    """Oracle: by hand, of numpy's arrays and of jax's: 1020 is 11 more than 1009, and the last is padding."""
    ids, mask = np.array([[1000, 20, 5], [3, 0, 0]]), np.array([[1, 1, 0], [1, 1, 1]], bool)
    for arrays in ((ids, mask), (jnp.asarray(ids), jnp.asarray(mask))):
        np.testing.assert_allclose(row_marks(*arrays), [11 / 1009, 3 / 1009], rtol=1e-6)


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("routing", [{}, {"moe_layers": "routing"}])
def test_a_batch_is_scored_at_the_temperature_that_it_was_sampled_at(
    monkeypatch, temperature, routing
):
    """Oracle: grpo_loss of what the model gives; the temperature that the model is called with, 1 if none."""
    batch = batch_of([1, -1], [[-1, -2], [-3, -1]])
    scored = batch["old_logprobs"] + 0.1, -batch["old_logprobs"]

    def score(*given, temperature):
        assert given == (None, "params", batch)
        asked.append(temperature)
        return *scored, routing

    asked = []
    monkeypatch.setattr(grpo, "completion_logprobs", score)
    if temperature is not None:
        batch["temperature"] = temperature
    options = GrpoOptions("dr_grpo")
    loss_fn = make_grpo_loss(None, options, max_completion_length=5)
    loss, metrics = loss_fn("params", batch, None)
    wanted, of_metrics = grpo_loss(*scored, batch, options, max_completion_length=5)
    assert asked == [temperature or 1.0] and loss == wanted
    assert metrics.pop("routing", {}) == routing
    assert metrics == of_metrics


def test_a_small_deviation_is_not_divided_by_less_than_the_millionth_beside_it():
    """Oracle: by hand: of 0 and 2e-6 the deviation is 1.414e-6."""
    found = group_advantages(jnp.float32([0, 2e-6]), group_size=2)
    np.testing.assert_allclose(found, np.array([-1, 1]) / (2**0.5 + 1), rtol=1e-5)


def test_options_that_are_not_given_are_those_of_the_papers():
    """Oracle: by hand."""
    assert GrpoOptions().clip_range() == (0.8, 1.2)
    assert GrpoOptions(normalize_std=True, loss_type="dr_grpo").normalizes_std()
    assert not GrpoOptions(normalize_std=False).normalizes_std()
    for loss_type, normalizes in NORMALIZES_STD.items():
        assert GrpoOptions(loss_type).normalizes_std() == normalizes == (loss_type != "dr_grpo")
    with pytest.raises(ValueError, match="^ratio_cap=1.2 must be above"):
        GrpoOptions(ratio_cap=1.2)
