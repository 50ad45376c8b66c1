"""Hidden states of another width, layers of another depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.distill.feature_distillation import (
    hidden_state_loss,
    init_projections,
    layer_map,
    unit_rms,
)


def test_layer_maps_by_hand():
    """Oracle: by hand: 3 layers of 5; 28 of 61 are 60/27 apart; a deeper student repeats."""
    assert layer_map(3, 5) == (0, 2, 4)
    assert layer_map(28, 61)[:4] == (0, 2, 4, 7)  # 2.2, 4.4, 6.7
    assert layer_map(5, 3) == (0, 1, 1, 2, 2)
    assert layer_map(1, 61) == (60,)
    assert layer_map(4, 1) == (0, 0, 0, 0)


def test_layer_maps_are_monotone_and_meet_at_both_ends():
    """Oracle: for all pairs of 2 to 64 layers: strictly increasing for a deeper teacher, every layer of a
    shallower one, the identity for equal depths, and at most half a layer off even spacing.
    """
    for student in range(2, 65):
        for teacher in range(1, 65):
            layers = layer_map(student, teacher)
            steps = np.diff(layers)
            assert len(layers) == student and layers[0] == 0 and layers[-1] == teacher - 1
            assert (steps >= (1 if teacher >= student else 0)).all()
            if teacher <= student:
                assert set(layers) == set(range(teacher))
            even = np.linspace(0, teacher - 1, student)
            assert np.abs(layers - even).max() <= 0.5 + 1e-9
        assert layer_map(student, student) == tuple(range(student))


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_no_layers_are_an_error(sizes):
    """Oracle: the message, by hand."""
    with pytest.raises(ValueError, match="^student_layers="):
        layer_map(*sizes)


def states(sizes=(6, 10), l_b_t=(3, 2, 5), seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.float32(rng.normal(size=(*l_b_t, size)) * 3) for size in sizes]


def test_the_loss_is_a_loop_over_layers_and_tokens():
    """Oracle: numpy in float64; 1e-5: float32 rounding and the 1e-6 that keeps a norm from 0."""
    hidden, teacher = states()
    projections = init_projections(jax.random.key(0), 3, 6, 10)
    wanted = np.zeros((2, 5))
    for index in np.ndindex(3, 2, 5):
        mine = np.asarray(hidden[index], float) @ np.asarray(projections[index[0]], float)
        theirs = np.asarray(teacher[index], float)
        distance = mine / np.sqrt((mine**2).mean()) - theirs / np.sqrt((theirs**2).mean())
        wanted[index[1:]] += (distance**2).mean() / 3
    found = hidden_state_loss(hidden, teacher, projections)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_same_states_are_at_distance_0_and_opposite_ones_at_4():
    """Oracle: by hand, exactly 0, gradient too, under the identity of equal widths; 1e-5: eps."""
    (hidden,) = states(sizes=(6,))
    identity = init_projections(jax.random.key(0), 3, 6, 6)
    value, gradient = jax.value_and_grad(lambda h: hidden_state_loss(h, hidden, identity).sum())(
        hidden
    )
    assert value == 0 and (gradient == 0).all()
    assert (hidden_state_loss(hidden, hidden, identity) == 0).all()
    np.testing.assert_allclose(hidden_state_loss(-7 * hidden, hidden, identity), 4, rtol=1e-5)


def test_a_smaller_projection_is_not_a_better_one():
    """Oracle: the loss itself: independent of the projection's scale up to eps, 1e-4."""
    hidden, teacher = states()
    projections = init_projections(jax.random.key(0), 3, 6, 10)
    small = hidden_state_loss(hidden, teacher, projections * 0.1)
    np.testing.assert_allclose(small, hidden_state_loss(hidden, teacher, projections), rtol=1e-4)


def test_projections_keep_the_scale():
    """Oracle: unit variance in, unit variance out: 3% for the spread of 3 matrices."""
    projections = init_projections(jax.random.key(0), 3, 64, 256)
    x = jax.random.normal(jax.random.key(1), (1000, 64))
    out = jnp.einsum("md,lde->lme", x, projections)
    assert projections.shape == (3, 64, 256)
    np.testing.assert_allclose(jnp.square(out).mean(), 1, rtol=0.03)


def test_gradients_reach_the_student_and_the_projection_and_stop_at_the_teacher():
    """Oracle: exactly 0 for the teacher; elsewhere central differences along a random direction, whose error
    is of second order in the step: 1%.
    """
    hidden, teacher = states()
    projections = init_projections(jax.random.key(0), 3, 6, 10)
    probe = jnp.float32(np.random.default_rng(1).normal(size=(2, 5)))

    def value(*arguments):
        return (hidden_state_loss(*arguments) * probe).sum()

    arguments = hidden, teacher, projections
    gradients = jax.grad(value, (0, 1, 2))(*arguments)
    assert (gradients[1] == 0).all()
    for place in (0, 2):
        direction = jnp.float32(
            np.random.default_rng(10 + place).normal(size=arguments[place].shape)
        )
        ends = []
        for step in (1e-2, -1e-2):
            moved = list(arguments)
            moved[place] = moved[place] + step * direction
            ends.append(value(*moved))
        slope = (gradients[place] * direction).sum()
        assert abs(slope) > 0.1
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-2, rtol=1e-2)


def test_states_of_nothing_stay_finite():
    """Oracle: by hand: zeros have no direction: distance 1 to any other, gradient finite."""
    _, teacher = states()
    projections = init_projections(jax.random.key(0), 3, 6, 10)
    value, gradient = jax.value_and_grad(
        lambda h: hidden_state_loss(h, teacher, projections).mean()
    )(jnp.zeros((3, 2, 5, 6)))
    np.testing.assert_allclose(value, 1, rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_shapes_that_do_not_fit_are_an_error():
    """Oracle: the message, by hand: another number of layers, of tokens, another projection."""
    hidden, teacher = states()
    projections = init_projections(jax.random.key(0), 3, 6, 10)
    for wrong in (
        (hidden[:2], teacher, projections),
        (hidden[:, :, :4], teacher, projections),
        (hidden, teacher, projections[:, :, :9]),
        (hidden, teacher, projections[:2]),
    ):
        with pytest.raises(ValueError, match="layer_map"):
            hidden_state_loss(*wrong)


def test_unit_rms_by_hand():
    """Oracle: by hand: (3, 4) has root mean square 5 / sqrt 2; 1e-6: eps."""
    np.testing.assert_allclose(
        unit_rms(jnp.array([3.0, 4.0])), np.array([3, 4]) * 2**0.5 / 5, rtol=1e-6
    )
    # Of the size of eps, which is added to the mean square
    np.testing.assert_allclose(unit_rms(jnp.full(4, 1e-3)), 0.5**0.5, rtol=1e-5)
