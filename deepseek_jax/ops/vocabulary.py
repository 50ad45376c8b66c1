"""Softmaxes and sums over a vocabulary, the last axis."""

import jax
import jax.numpy as jnp


def log_softmax(logits):
    """Return log-probabilities in nats: float32[... v] -> float32[... v]."""
    # Not jax.nn.log_softmax: XLA's CPU compiler fuses its steps into the product before it, which
    # is slower
    return logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def log_total(logits, temperature=1.0):
    """Return the log of the sum of exp(logits / temperature): float32[... v] -> float32[...]."""
    most = largest(logits)
    return jnp.log(exponential_sum(logits, most, temperature)) + most[..., 0] / temperature


def largest(logits):
    """Return the largest logit of each row, without gradient: float32[... 1].

    Shifted by it, exponentials stay finite.
    """
    return jax.lax.stop_gradient(logits).max(-1, keepdims=True)


def exponential(logits, most, temperature):
    """Return exp((logits - most) / temperature), where most is `largest` of the logits."""
    # The temperature enters only here: dividing the logits first would be one more pass over the
    # vocabulary
    return jnp.exp((logits - most) * (1 / temperature))


def exponential_sum(logits, most, temperature):
    """Sum `exponential` over the vocabulary: float32[... v], float32[... 1] -> float32[...]."""
    return exponential(logits, most, temperature).sum(-1)
