"""How well a model foresees documents that it was not trained on."""

import jax

from deepseek_jax.evaluation.accuracy import mean_interval


def held_out_loss(loss_fn, params, batches):
    """The mean of loss_fn(params, batch), nats a token, over batches of about as many tokens each.

    batches: a sequence of at least 2. Returns (mean, low, high) with the 95% interval of batches.
    """
    return mean_interval(
        [float(loss) for loss in jax.device_get([loss_fn(params, b) for b in batches])]
    )
