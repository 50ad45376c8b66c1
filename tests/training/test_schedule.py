import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.training.schedule import Phase, join_phases, make_schedule, number_at, stepwise


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


def test_schedule_refuses_a_warm_up_that_does_not_end():
    """Oracle: the message names what was given."""
    with pytest.raises(ValueError, match="^warmup_steps=10 must be below 10, the number of all"):
        make_schedule(0.1, num_steps=10, warmup_steps=10)


PHASES = (
    Phase("linear", 4, 2.0),
    Phase("constant", 3),
    Phase("cosine", 4, 0.2),
    Phase("constant", 2, 0.1),
    Phase("linear", 2, 0.0),
)


def test_phases_join_end_to_end():
    """Oracle: by hand: from 0 by quarters; half-way down the cosine (2 + 0.2) / 2; then a jump."""
    rate = join_phases(PHASES, num_steps=15)
    eighth = 0.2 + 1.8 * (1 + np.sqrt(0.5)) / 2  # cos(pi / 4)
    wanted = [0, 0.5, 1, 1.5, 2, 2, 2, 2, eighth, 1.1, 2.2 - eighth, 0.1, 0.1, 0.1, 0.05]
    for f in (rate, jax.jit(rate)):
        rates = [f(jnp.int32(i)) for i in range(15)]
        assert all(r.dtype == jnp.float32 and r.shape == () for r in rates)
        np.testing.assert_allclose(rates, wanted, rtol=1e-6, atol=1e-7)  # float32


def test_the_published_learning_rate_at_its_published_size():
    """Oracle: arXiv:2412.19437, section 4.2, in float64 numpy; update counts of a 15360-sequence batch."""
    hold, fall, low, last = 158_000, 68_350, 5_293, 2_654
    rate = jax.jit(
        join_phases(
            [
                Phase("linear", 2000, 2.2e-4),
                Phase("constant", hold),
                Phase("cosine", fall, 2.2e-5),
                Phase("constant", low),
                Phase("constant", last, 7.3e-6),
            ],
            num_steps=2000 + hold + fall + low + last,
        )
    )
    i = np.arange(0, 2000 + hold + fall + low + last, 7)
    left = np.clip((i - 2000 - hold) / fall, 0, 1)
    wanted = 2.2e-5 + 1.98e-4 * (1 + np.cos(np.pi * left)) / 2
    wanted = np.where(i < 2000, 2.2e-4 * i / 2000, wanted)
    wanted = np.where(i >= 2000 + hold + fall + low, 7.3e-6, wanted)
    # float32, whose cosine is good to about 1e-7 of its range
    np.testing.assert_allclose(jax.vmap(rate)(i), wanted, rtol=1e-6, atol=2.2e-4 * 3e-7)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (PHASES[:4], r"^phases=\[4, 3, 4, 2\] take 13 updates in all, 2 fewer than the 15 of the"),
        ((*PHASES, Phase("constant", 3)), "take 18 updates in all, 3 more than the 15"),
        ((), "take 0 updates in all, 15 fewer"),
        ((Phase("constant", 15),), r"^phases\[0\].to=None: the first phase needs a rate"),
    ],
)
def test_phases_that_make_no_sense_are_refused(phases, message):
    """Oracle: the message names what was given."""
    with pytest.raises(ValueError, match=message):
        join_phases(phases, num_steps=15)


def test_a_stepwise_number_jumps_at_its_first_updates():
    """Oracle: by hand, around each jump; the same on the host."""
    stages = ((0, 0.3), (5, 0.1), (166_000, 0.0))
    f = stepwise(stages)
    wanted = {0: 0.3, 4: 0.3, 5: 0.1, 6: 0.1, 165_999: 0.1, 166_000: 0.0, 2**31 - 1: 0.0}
    for update, number in wanted.items():
        for got in (f(update), jax.jit(f)(jnp.int32(update))):
            assert got == np.float32(number) and got.dtype == jnp.float32 and got.shape == ()
        assert number_at(stages, update) == number
    assert jax.jit(stepwise([(0, 1)]))(7) == jax.jit(stepwise(1))(7) == number_at(1, 7) == 1.0


def test_a_stage_on_the_host_stays_an_int():
    """Oracle: by hand."""
    sizes = [number_at(((0, 3072), (3, 15360)), update) for update in range(5)]
    assert sizes == [3072] * 3 + [15360] * 2 and {type(size) for size in sizes} == {int}
    assert number_at(7, 0) == 7
