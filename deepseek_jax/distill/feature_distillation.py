"""Distillation of hidden states, from a teacher of another depth and width."""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.dot import dot

RMS_EPS = 1e-6


def layer_map(student_layers: int, teacher_layers: int):
    """The teacher's layer for each of the student's, both counted from 0: a tuple of student_layers ints.

    Evenly spread, never decreasing, first to first and last to last; strictly increasing if the teacher is as
    deep or deeper. A student of one layer takes the teacher's last. Raises ValueError below one layer.
    """
    if min(student_layers, teacher_layers) < 1:
        raise ValueError(
            f"student_layers={student_layers} and teacher_layers={teacher_layers} must be at least 1"
        )
    if student_layers == 1:
        return (teacher_layers - 1,)
    steps, height = student_layers - 1, teacher_layers - 1
    # i * height / steps, rounded half up in integers: Python's round takes halves to the even neighbour
    return tuple((2 * i * height + steps) // (2 * steps) for i in range(student_layers))


def init_projections(key, num_layers: int, student_size: int, teacher_size: int):
    """One matrix per layer from the student's width to the teacher's: float32[num_layers student teacher].

    The identity if the widths agree, else random at a scale that preserves variance. Trained with the
    student, then dropped.
    """
    if student_size == teacher_size:
        return jnp.broadcast_to(jnp.eye(student_size), (num_layers, student_size, student_size))
    shape = (num_layers, student_size, teacher_size)
    return jax.random.normal(key, shape, jnp.float32) * student_size**-0.5


def unit_rms(x):
    """x[... d] divided by its root mean square over d, in float32: models differ in the scale of x."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + RMS_EPS)


@jax.jit
def hidden_state_loss(
    hidden: jax.Array, teacher_hidden: jax.Array, projections: jax.Array
) -> jax.Array:
    """Mean square distance of projected and teacher's hidden states, mean over layers: float32[b t].

    hidden: [l b t d], the residual stream after the layers compared. teacher_hidden: [l b t d'], after the
    teacher's layers that layer_map names, at the same tokens. projections: float[l d d'].
    The hidden-state loss of TinyBERT (arXiv:1909.10351), but each side has unit RMS, as in Patient KD
    (arXiv:1908.09355): the distance is 2 - 2 cos, 0 for equal directions and 4 for opposite ones, so a
    projection cannot lower it by shrinking. One layer is in float32 at a time. The teacher gets no gradient.
    Raises ValueError for shapes that do not fit.
    """
    wanted = (len(hidden), hidden.shape[-1], teacher_hidden.shape[-1])
    if hidden.shape[:-1] != teacher_hidden.shape[:-1] or projections.shape != wanted:
        raise ValueError(
            f"hidden states {hidden.shape} of the student and {teacher_hidden.shape} of the teacher with "
            f"projections {projections.shape}, which should be {wanted}; take as many layers of both, from "
            "layer_map, at the same tokens, and init_projections for their widths"
        )

    # The gradient computes a layer's float32 arrays again, so that those of all layers are never saved
    @jax.checkpoint
    def add_layer(total_bt, layer):
        x_btd, teacher_bty, projection_dy = layer  # y: the teacher's width
        projected_bty = dot("btd,dy->bty", x_btd, projection_dy, jnp.float32)
        distance_bty = unit_rms(projected_bty) - unit_rms(teacher_bty)
        return total_bt + jnp.square(distance_bty).mean(-1), None

    layers = (hidden, jax.lax.stop_gradient(teacher_hidden), projections)
    total_bt, _ = jax.lax.scan(add_layer, jnp.zeros(hidden.shape[1:3]), layers)
    return total_bt / len(hidden)
