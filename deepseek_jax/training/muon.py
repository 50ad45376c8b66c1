"""Muon, an optimizer that updates a matrix by the nearest orthogonal matrix to its momentum.

So all directions of a matrix learn at one pace (https://kellerjordan.github.io/posts/muon;
arXiv:2502.16982). The constants are DeepSeek-V4's (arXiv:2606.19348).
"""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import optax

from deepseek_jax.models.layers import matrix_input_axes

# Newton-Schulz steps: eight that raise all singular values fast, then two that settle them at 1
COEFFICIENTS = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2
# The root mean square of an update of a whole matrix. It is near AdamW's, so that one learning rate
# serves both
UPDATE_RMS = 0.18


def scale_by_muon(momentum: float, moment_dtype: str):
    """Build an optax transformation that gives each matrix's direction under Muon.

    The direction is the orthogonalised Nesterov momentum, times UPDATE_RMS * sqrt(max(inputs,
    outputs)). The momentum M follows arXiv:2502.16982, section 2.1: M becomes momentum * M + G, and
    then momentum * M + G is orthogonalised.

    The transformation takes only parameters for which is_matrix is true. Each layer, each expert
    and each half of a gated MLP's first weight is a matrix of its own. So are the two
    up-projections of a latent, which checkpoints join. All heads of a projection are one matrix.
    """

    def direction(momenta, params):
        # DeepSeek-V4's layers have parameters of their own. A loop over those that are alike compiles
        # once, where each would be ten steps of three products
        leaves, tree = jax.tree.flatten_with_path(momenta)
        alike = collections.defaultdict(list)
        for number, (path, x) in enumerate(leaves):
            alike[path[1:], x.shape].append(number)
        directions: dict[int, jax.Array] = {}
        for numbers in alike.values():
            path = leaves[numbers[0]][0]
            stack = jnp.stack([leaves[number][1] for number in numbers])
            moved = jax.lax.map(functools.partial(_direction, path), stack)
            directions |= zip(numbers, moved, strict=True)
        return jax.tree.unflatten(tree, [directions[number] for number in range(len(leaves))])

    return optax.chain(
        optax.trace(momentum, nesterov=True, accumulator_dtype=moment_dtype),
        optax.stateless(direction),
    )


def is_matrix(path):
    """Return whether a parameter is a matrix, or a stack of matrices, that Muon updates.

    Embeddings and heads are not.

    Args:
        path: the parameter's keys in a tree of params.
    """
    return matrix_input_axes(path) is not None


def _direction(path, momentum):
    """Orthogonalise one parameter's momentum, and scale it."""
    matrix = _matrix(path, momentum)
    # Without optax's own momentum, which corrects the bias of M and of G separately: at first G
    # would weigh too much
    newton_schulz = optax.contrib.scale_by_muon(
        ns_coeffs=COEFFICIENTS,
        ns_steps=len(COEFFICIENTS),
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=lambda _: matrix,
    )
    # Its state is all zeros. To store it would take a second buffer of moments
    orthogonal, _ = newton_schulz.update(momentum, newton_schulz.init(momentum))
    widths = [math.prod(momentum.shape[axis] for axis in axes) for axes in matrix]
    return orthogonal * (UPDATE_RMS * max(widths) ** 0.5)


def _matrix(path, leaf):
    inputs = matrix_input_axes(path)
    assert inputs is not None, f"{path} is no matrix, see is_matrix"
    outputs = range(inputs.stop, leaf.ndim)
    # gate_up is [... inputs 2 outputs], and each half is a matrix
    if path[-1].key == "gate_up":
        outputs = outputs[1:]
    return optax.contrib.MuonDimensionNumbers(tuple(inputs), tuple(outputs))
