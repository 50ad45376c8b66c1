"""Log-probabilities: of given tokens without ever holding the [tokens, vocabulary] array, and of all."""

import jax
import jax.numpy as jnp

from deepseek_jax.ops.dot import dot

LOGITS_ALIVE = 2**24  # how many logits a chunk may have by default: 64 MiB of float32


def log_softmax(logits):
    """float32[... v] -> float32[... v], nats: jax.nn.log_softmax up to the largest logit's rounding.

    Over a product's logits and with its gradient it takes a CPU a fifth less time: that one's steps XLA's
    compiler fuses into the product, where they run slower, with constants copied to the size of all logits.
    """
    return logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def exponentials(logits, temperature=1.0):
    """exp((logits - the largest) / temperature) [... v], their sum and the logarithm of the sum of
    exp(logits / temperature), [...]: logits float32[... v].

    The temperature is in the exponents alone: divided by it first, logits would be written out once more.
    """
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    each = jnp.exp((logits - largest) * (1 / temperature))
    total = each.sum(-1)
    return each, total, jnp.log(total) + largest[..., 0] / temperature


def token_logprobs(hidden, head, targets, *, temperature=1.0, chunk_size=None):
    """Log-probability of each target token, and the entropy of the distribution it was drawn from.

    hidden: [m d], after the final norm. head: [v d]. targets: int32[m]. temperature divides the logits, as
    it does when sampling. Returns logprobs, float32[m] in nats, and entropy, float32[m] in nats, which
    carries no gradient. Works through chunk_size tokens at a time (default: what keeps LOGITS_ALIVE) and
    recomputes their logits for the gradient, where there is more than one chunk, so that at most
    chunk_size * v of them are alive; equal to a full log-softmax.
    """
    m = len(targets)
    chunk = min(chunk_size or max(LOGITS_ALIVE // len(head), 1), m)
    chunk = -(-m // -(-m // chunk))  # even chunks: as few, with the least padding
    padding = -m % chunk
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)

    def of_chunk(inputs):
        hidden_md, target_m = inputs
        logits_mv = dot("md,vd->mv", hidden_md, head, jnp.float32) / temperature
        normalizer_m = jax.nn.logsumexp(logits_mv, axis=-1)
        chosen_m = jnp.take_along_axis(logits_mv, target_m[:, None], axis=-1)[:, 0]
        fixed_mv, fixed_m = jax.lax.stop_gradient((logits_mv, normalizer_m))
        mean_logit_m = (jnp.exp(fixed_mv - fixed_m[:, None]) * fixed_mv).sum(-1)
        return chosen_m - normalizer_m, fixed_m - mean_logit_m

    if len(hidden) > 1:
        of_chunk = jax.checkpoint(of_chunk)
    logprobs, entropy = jax.lax.map(of_chunk, (hidden, targets))
    return logprobs.reshape(-1)[:m], entropy.reshape(-1)[:m]
