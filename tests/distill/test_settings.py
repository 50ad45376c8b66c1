"""The settings of a student's loss."""

import pytest

from deepseek_jax.distill.settings import CROSS, LossSettings, OnPolicySettings
from deepseek_jax.settings import build

SAMPLES = dict(prompts=2, max_completion_length=4)


def settings(weights, **fields):
    return build(LossSettings, dict(weights=weights, **fields), "loss")


@pytest.mark.parametrize(
    "weights, fields, words",
    [
        (dict(sofd=1.0, hard=1.0), {}, "weights.sofd=1.0 names no term; did you mean soft"),
        (dict(l2=1.0), {}, "leaves nothing to learn"),
        (dict(hard=0.0), {}, "leaves nothing to learn"),
        (dict(hard=1.0), dict(top_k=4), "to one number"),
        (dict(soft=1.0), dict(top_k=4, temperature=((0, 1.0), (9, 2.0))), "to one number"),
        (dict(soft=1.0), dict(top_k=4, divergence="reverse_kl"), "has no bound"),
        (dict(on_policy=1.0), {}, "set both, or neither"),
        (dict(hard=1.0), dict(on_policy=SAMPLES), "set both, or neither"),
        *((dict([(own, 1.0), (name, 1.0)]), {}, "mixes terms")
          for own, name in zip(CROSS * 2, ("soft", "hidden", "relations", "soft"), strict=True)),
        (dict(matched=1.0, on_policy=1.0), dict(on_policy=SAMPLES), "mixes terms"),
        (dict(soft=1.0), dict(divergence="kl"), "loss.divergence='kl'"),
        (dict(soft=1.0), dict(temperature=0.0), "loss.temperature=0.0"),
        (dict(soft=1.0), dict(temperature=float("nan")), "loss.temperature=nan"),
        (dict(soft=1.0), dict(temperature=((0, 1.0), (9, float("inf")))), "loss.temperature"),
        (dict(soft=1.0), dict(divergence="jsd"), "beta=None"),
        (dict(soft=1.0), dict(divergence="jsd", beta=0.0), "beta=0.0 must be between"),
        (dict(soft=1.0), dict(divergence="jsd", beta=1.0), "beta=1.0 must be between"),
        (dict(on_policy=1.0), dict(on_policy=SAMPLES | dict(divergence="jsd")), "on_policy.beta="),
    ],
)  # fmt: skip
def test_a_loss_that_makes_no_sense_is_refused(weights, fields, words):
    """Oracle: by hand: the field that the message names, and what it says of it."""
    with pytest.raises(ValueError, match=words):
        settings(weights, **fields)


@pytest.mark.parametrize(
    "weights, fields",
    [
        (dict(soft=1.0), dict(top_k=4)),
        (dict(soft=1.0), dict(top_k=4, temperature=((0, 2.0),))),
        (dict(soft=1.0), dict(top_k=4, divergence="jsd", beta=0.001)),
        (dict(soft=1.0), dict(top_k=4, divergence="jsd", beta=0.999)),
        (dict(soft=0.0, matched=1.0, sorted=1.0, hard=1.0), {}),
        (dict(on_policy=1.0), dict(on_policy=SAMPLES)),
    ],
)
def test_a_loss_that_makes_sense_is_built(weights, fields):
    """Oracle: by hand: beside each rule, what it allows."""
    assert settings(weights, **fields).weights == weights


def test_what_is_not_set_changes_nothing():
    """Oracle: by hand: distributions as they are, all of them, and one relation for a layer."""
    made = settings(dict(on_policy=1.0), on_policy=SAMPLES)
    assert made.temperature == made.on_policy.temperature == made.on_policy.top_p == 1.0
    assert made.relation_heads == 1
    assert isinstance(made.on_policy, OnPolicySettings)


@pytest.mark.parametrize(
    "weights, fields, texts, asks, reads",
    [
        (dict(hard=1.0, soft=0.0), {}, True, False, False),
        (dict(soft=1.0), {}, True, True, True),
        (dict(soft=1.0), dict(top_k=4), True, True, False),
        (dict(soft=1.0, hidden=1.0), dict(top_k=4), True, True, True),
        (dict(on_policy=1.0), dict(on_policy=SAMPLES), False, True, True),
    ],
)
def test_what_a_loss_needs(weights, fields, texts, asks, reads):
    """Oracle: by hand: texts, a teacher at all, and one in memory while the student trains."""
    made = settings(weights, **fields)
    assert (made.learns_texts(), made.asks_teacher(), made.reads_teacher()) == (texts, asks, reads)


def test_the_temperature_is_interpolated_between_updates():
    """Oracle: by hand."""
    made = settings(dict(soft=1.0), temperature=((0, 4.0), (10, 2.0)))
    assert [made.temperature_at(update) for update in (0, 5, 10, 99)] == [4.0, 3.0, 2.0, 2.0]
    assert settings(dict(soft=1.0), temperature=3.0).temperature_at(7) == 3.0
