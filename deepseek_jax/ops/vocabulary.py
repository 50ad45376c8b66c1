"""Softmaxes and sums over a vocabulary, the last axis."""

import jax
import jax.numpy as jnp


def log_softmax(logits):
    """float32[... v] -> float32[... v], nats."""
    # Not jax.nn.log_softmax: XLA's CPU compiler fuses its steps into the product before it, which is slower
    return logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def log_total(logits, temperature=1.0):
    """log of the sum of exp(logits / temperature): float32[... v] -> float32[...]."""
    most = largest(logits)
    return jnp.log(exponential_sum(logits, most, temperature)) + most[..., 0] / temperature


def largest(logits):
    """The largest of each row, float32[... 1], without gradient: the shift that keeps exponentials finite."""
    return jax.lax.stop_gradient(logits).max(-1, keepdims=True)


def exponential(logits, most, temperature):
    """exp((logits - most) / temperature), where most is `largest` of the logits."""
    # The temperature enters here alone: dividing the logits first would be one more pass over the vocabulary
    return jnp.exp((logits - most) * (1 / temperature))


def exponential_sum(logits, most, temperature):
    """The sum of `exponential`: float32[... v], float32[... 1] -> float32[...]."""
    return exponential(logits, most, temperature).sum(-1)
