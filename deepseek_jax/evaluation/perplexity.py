"""Held-out loss of documents, with an interval over batches.

Tests: tests/evaluation/test_stopping.py.
"""

from collections.abc import Callable, Sequence

from deepseek_jax.evaluation.accuracy import mean_interval
from deepseek_jax.training.run import leave_if_asked
from deepseek_jax.trees import PyTree


def held_out_loss(
    loss_fn: Callable, params: PyTree, batches: Sequence
) -> tuple[float, float, float]:
    """Return the mean of loss_fn(params, batch), nats a token, with a 95% interval over batches.

    Args:
        batches: At least 2, with about equally many tokens.

    Returns:
        (mean, low, high).
    """
    losses = []
    for batch in batches:
        leave_if_asked("the measurement")
        # float() waits for the result, so that a request to stop is noticed after this batch
        losses.append(float(loss_fn(params, batch)))
    return mean_interval(losses)
