"""Held-out loss of documents."""

from collections.abc import Callable, Sequence
from typing import Any

from deepseek_jax.evaluation.accuracy import mean_interval
from deepseek_jax.training.run import leave_if_asked


def held_out_loss(loss_fn: Callable, params: Any, batches: Sequence) -> tuple[float, float, float]:
    """The mean of loss_fn(params, batch), in nats per token, over batches of about equally many tokens.

    batches: a sequence of at least 2. Returns (mean, low, high) with the 95% interval over batches.
    """
    losses = []
    for batch in batches:
        leave_if_asked("the measurement")
        # The number, for which it waits: a request to stop is heard after the batch at hand
        losses.append(float(loss_fn(params, batch)))
    return mean_interval(losses)
