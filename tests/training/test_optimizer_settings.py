"""config.optimizer, from its block to the updates it makes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict

from deepseek_jax.settings import build
from deepseek_jax.training.optimizer import OptimizerSettings

# The largest decay of a bfloat16 moment
BOUND = 1 - 2**-8
PHASES = [
    dict(kind="linear", steps=2, to=2),
    dict(kind="constant", steps=1),
    dict(kind="constant", steps=2, to=0.5),
]


def settings(**block):
    return build(OptimizerSettings, ConfigDict(block), "config.optimizer")


@pytest.mark.parametrize(("moment_dtype", "rtol"), [("float32", 1e-6), ("bfloat16", 0.02)])
def test_phases_of_a_config_become_its_learning_rates(moment_dtype, rtol):
    """Oracle: by hand; Adam moves by the rate itself where every gradient is 1 (arXiv:1412.6980, section
    2.1). A bfloat16 moment is off by up to 2**-9 in each of the four roundings before the last update.
    """
    tx = settings(phases=PHASES, max_grad_norm=9, moment_dtype=moment_dtype).make(5)
    params = {"w": jnp.ones(())}
    state, moved = tx.init(params), []
    for _ in range(5):
        updates, state = tx.update(params, state, params)
        moved.append(-updates["w"])
    np.testing.assert_allclose(moved, [0, 1, 2, 0.5, 0.5], rtol=rtol)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.int32}
    assert dtypes == {moment_dtype}


@pytest.mark.parametrize(
    "block, updates",
    [
        (dict(learning_rate=1.0), 0),
        (dict(learning_rate=1.0, warmup_steps=3), 3),
        (dict(phases=PHASES), 2),
        (dict(phases=[dict(kind="cosine", steps=4, to=1)]), 4),
        (
            dict(phases=[dict(kind="constant", steps=2, to=1), dict(kind="linear", steps=2, to=0)]),
            0,
        ),
    ],
)
def test_a_warm_up_ends_where_the_rate_is_whole(block, updates):
    """Oracle: by hand."""
    assert settings(**block).warm_up() == updates


def test_multi_token_prediction_is_trained_where_asked():
    """Oracle: by hand: 0.5, the rate, where every gradient is 1."""
    params = {"mtp_0": {"kernel": jnp.ones(())}}
    for parts, moved in ((), 0), (("mtp",), -0.5):
        tx = settings(learning_rate=0.5).make(1, trained_parts=parts)
        updates, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(updates["mtp_0"]["kernel"], moved, rtol=1e-6)  # float32


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (dict(), "config.optimizer.learning_rate=None and phases=() are no schedule; set one"),
        (dict(phases=PHASES, learning_rate=0.1), "config.optimizer.learning_rate=0.1 and phases"),
        (dict(phases=PHASES, schedule="cosine"), "config.optimizer.schedule='cosine' and phases"),
        (dict(phases=PHASES, warmup_steps=1), "config.optimizer.warmup_steps=1 and phases are two"),
        (dict(phases=PHASES, final_fraction=0), "config.optimizer.final_fraction=0.0 and phases"),
        (dict(phases=PHASES[:2]), "phases=[2, 1] take 3 updates in all, 2 fewer than the 5"),
        (
            dict(phases=[dict(kind="cosine", steps=5)]),
            "config.optimizer.phases[0].to=None: a phase of kind='cosine' needs the rate",
        ),
        (
            dict(learning_rate=0.1, moment_dtype="bfloat16", b2=BOUND + 1e-4),
            "b2=0.9961",
        ),
        (
            dict(learning_rate=0.1, moment_dtype="bfloat16", kind="muon", momentum=BOUND + 1e-4),
            "momentum=0.9961",
        ),
        (dict(learning_rate=0.1, moment_dtype="bfloat16", b2=0.999), "b2=0.999 decays a moment by"),
        (dict(learning_rate=0.1, moment_dtype="bfloat16", b1=0.997), "b1=0.997 decays a moment by"),
    ],
)
def test_a_block_that_makes_no_sense_is_refused_before_anything_compiles(block, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        settings(**block).make(5)
    assert words in str(error.value)


def test_a_bfloat16_moment_can_decay_at_any_rate_that_is_allowed():
    """Oracle: every bfloat16 in [1, 2) by numpy, without a gradient: it must come out smaller. At 0.999
    none does; just above the limit, some stay.
    """
    moment = (np.arange(128, dtype=np.float32) / 128 + 1).astype(ml_dtypes.bfloat16)

    def stay(b):
        return (np.float32(b) * moment.astype(np.float32)).astype(ml_dtypes.bfloat16) == moment

    limit = 1 - 2**-8
    settings(learning_rate=0.1, moment_dtype="bfloat16", b1=limit, b2=limit).make(5)
    assert not stay(limit).any()
    assert stay(0.999).all() and stay(0.9962).any()


def test_what_is_not_set_is_as_published():
    """Oracle: arXiv:2412.19437, section 4.2, for AdamW and its clip; a constant rate without decay; for Muon
    arXiv:2606.19348.
    """
    made = settings(learning_rate=1.0)
    assert (made.b1, made.b2, made.max_grad_norm, made.momentum) == (0.9, 0.95, 1.0, 0.95)
    assert (made.weight_decay, made.warmup_steps, made.final_fraction) == (0.0, 0, 0.1)


def test_moments_of_bfloat16_decay_up_to_their_bound():
    """Oracle: by hand: all three at half of bfloat16's widest gap."""
    fields = dict(b1=BOUND, b2=BOUND, momentum=BOUND)
    settings(learning_rate=1.0, kind="muon", moment_dtype="bfloat16", **fields)


def test_the_fields_of_a_schedule_make_its_rate():
    """Oracle: by hand: a third of the rate at first, all of it after two updates, half of it at the end."""
    made = settings(learning_rate=2.0, schedule="cosine", warmup_steps=2, final_fraction=0.5)
    rate = made.rate(10)
    np.testing.assert_allclose([rate(i) for i in (0, 2, 10)], [2 / 3, 2, 1], rtol=1e-6)  # float32


def test_a_gradient_as_small_as_epsilon_moves_half_as_far():
    """Oracle: by hand: g / (|g| + 1e-8), with moments corrected. 1e-3: float32 squares."""
    tx = settings(learning_rate=1.0).make(3)
    params = {"kernel": jnp.zeros((2, 2))}
    updates, _ = tx.update({"kernel": jnp.full((2, 2), 1e-8)}, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5, rtol=1e-3)
