"""Muon: matrices are updated by the nearest orthogonal matrix to their momentum, so that all directions learn
at one pace (https://kellerjordan.github.io/posts/muon; arXiv:2502.16982), with DeepSeek-V4's numbers
(arXiv:2606.19348).
"""

import math

import jax
import optax

from deepseek_jax.models import matrix_input_axes

# Newton-Schulz steps: eight that raise all singular values fast, then two that settle them at 1
COEFFICIENTS = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2
# The root mean square of an update of a whole matrix, near that of AdamW: one learning rate serves both
UPDATE_RMS = 0.18


def scale_by_muon(momentum: float, moment_dtype: str):
    """The direction of each matrix, an optax transformation: Nesterov momentum, orthogonalised, times
    UPDATE_RMS * sqrt(max(inputs, outputs)).

    The momentum M is that of arXiv:2502.16982, section 2.1: M becomes momentum * M + G, and then
    momentum * M + G is orthogonalised. It takes only parameters for which is_matrix is true. Each layer,
    expert and half of a gated MLP's first weight is a matrix of its own, and so are the two up-projections of
    a latent, which checkpoints join. All heads of a projection are one matrix.
    """
    # Without optax's momentum, which corrects the bias of M and of G apart: at first G would weigh too much
    newton_schulz = optax.contrib.scale_by_muon(
        ns_coeffs=COEFFICIENTS,
        ns_steps=len(COEFFICIENTS),
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=lambda params: jax.tree.map_with_path(_matrix, params),
    )

    def direction(momenta, params):
        # Its state, all zeros, would be a second buffer of moments
        orthogonal, _ = newton_schulz.update(momenta, newton_schulz.init(momenta))
        return jax.tree.map_with_path(lambda p, x: x * _scale(p, x), orthogonal)

    return optax.chain(
        optax.trace(momentum, nesterov=True, accumulator_dtype=moment_dtype),
        optax.stateless(direction),
    )


def is_matrix(path):
    """Whether the parameter with these keys in a tree of params is a matrix, or a stack of matrices, that is
    no embedding and no head.
    """
    return matrix_input_axes(path) is not None


def _matrix(path, leaf):
    inputs = matrix_input_axes(path)
    outputs = range(inputs.stop, leaf.ndim)
    # The halves [... inputs 2 outputs]
    if path[-1].key == "gate_up":
        outputs = outputs[1:]
    return optax.contrib.MuonDimensionNumbers(tuple(inputs), tuple(outputs))


def _scale(path, leaf):
    sizes = [math.prod(leaf.shape[axis] for axis in axes) for axes in _matrix(path, leaf)]
    return UPDATE_RMS * max(sizes) ** 0.5
