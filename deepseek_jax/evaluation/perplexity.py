"""Held-out loss of documents."""

from collections.abc import Callable

import jax

from deepseek_jax.evaluation.accuracy import mean_interval


def held_out_loss(loss_fn: Callable, params, batches):
    """The mean of loss_fn(params, batch), in nats per token, over batches of about equally many tokens.

    batches: a sequence of at least 2. Returns (mean, low, high) with the 95% interval over batches.
    """
    return mean_interval(
        [float(loss) for loss in jax.device_get([loss_fn(params, b) for b in batches])]
    )
