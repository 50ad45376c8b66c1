"""Distillation of hidden states from a teacher of another depth and width."""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.dot import dot

RMS_EPS = 1e-6


def layer_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Choose the teacher's layer to compare with each of the student's layers.

    Both count from 0. The layers are evenly spread and never decrease; the first goes to the first,
    the last to the last. They strictly increase if the teacher is as deep as the student or deeper.
    A student of one layer takes the teacher's last.

    Raises:
        ValueError: If a model has less than one layer.
    """
    if min(student_layers, teacher_layers) < 1:
        raise ValueError(
            f"student_layers={student_layers} and teacher_layers={teacher_layers} must be at least 1"
        )
    if student_layers == 1:
        return (teacher_layers - 1,)
    steps, height = student_layers - 1, teacher_layers - 1
    # i * height / steps, rounded half up in integers: Python's round() takes halves to the even
    # neighbour
    return tuple((2 * i * height + steps) // (2 * steps) for i in range(student_layers))


def init_projections(
    key: jax.Array, num_layers: int, student_size: int, teacher_size: int
) -> jax.Array:
    """Draw one matrix per layer from the student's width to the teacher's.

    It is the identity if the widths agree, else random at a scale that preserves variance.
    Projections are trained with the student, then dropped.

    Returns:
        float32[num_layers student_size teacher_size].
    """
    if student_size == teacher_size:
        return jnp.broadcast_to(jnp.eye(student_size), (num_layers, student_size, student_size))
    shape = (num_layers, student_size, teacher_size)
    return jax.random.normal(key, shape, jnp.float32) * student_size**-0.5


def unit_rms(x):
    """Divide x[... d] by its root mean square over d, in float32: models differ in x's scale."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + RMS_EPS)


@jax.jit
def hidden_state_loss(
    hidden: jax.Array, teacher_hidden: jax.Array, projections: jax.Array
) -> jax.Array:
    """Compute the mean square distance of two models' hidden states, over all layers: float32[b t].

    This is the hidden-state loss of TinyBERT (arXiv:1909.10351), but each side has unit RMS, as in
    Patient KD (arXiv:1908.09355). So the distance is 2 - 2 cos, 0 for equal directions and 4 for
    opposite ones, and a projection cannot lower it by shrinking. One layer is in float32 at a time.
    The teacher gets no gradient.

    Args:
        hidden: [l b t d], the student's residual stream after the compared layers.
        teacher_hidden: [l b t d'], after the teacher's layers from layer_map, at the same tokens.
        projections: float[l d d'], from the student's width to the teacher's.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    wanted = (len(hidden), hidden.shape[-1], teacher_hidden.shape[-1])
    if hidden.shape[:-1] != teacher_hidden.shape[:-1] or projections.shape != wanted:
        raise ValueError(
            f"hidden states {hidden.shape} of the student and {teacher_hidden.shape} of the teacher with "
            f"projections {projections.shape}, which should be {wanted}; take as many layers of both, from "
            "layer_map, at the same tokens, and init_projections for their widths"
        )

    # The gradient computes a layer's float32 arrays again, so that they are never saved for all
    # layers
    @jax.checkpoint
    def add_layer(total_bt, layer):
        x_btd, teacher_bty, projection_dy = layer  # y: the teacher's width
        projected_bty = dot("btd,dy->bty", x_btd, projection_dy, jnp.float32)
        distance_bty = unit_rms(projected_bty) - unit_rms(teacher_bty)
        return total_bt + jnp.square(distance_bty).mean(-1), None

    layers = (hidden, jax.lax.stop_gradient(teacher_hidden), projections)
    total_bt, _ = jax.lax.scan(add_layer, jnp.zeros(hidden.shape[1:3]), layers)
    return total_bt / len(hidden)
