"""Log-probabilities of given tokens, without the whole [tokens, vocabulary] array in memory."""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.platform import size_of
from deepseek_jax.ops.vocabulary import log_total


def token_logprobs(hidden, head, targets, temperature=1.0, *, chunk_size: int | None = None):
    """Return each target token's log-probability, and the entropy of the predicted distribution.

    The result equals a full log-softmax, but is computed in chunks of tokens. With more than one
    chunk, the backward pass recomputes the logits, so that at most chunk_size * v of them are in
    memory.

    Args:
        hidden: [m d], after the final norm.
        head: [v d].
        targets: int32[m], or (int32[m], candidates int32[m n]). With candidates, each row's
            distribution is over its candidates only; -1 fills unused places. Results of a row
            without candidates have no meaning.
        temperature: Divides the logits, as in sampling. It gets no gradient.
        chunk_size: Tokens of a chunk. None: as many as have "logits_alive" logits (ops.platform).

    Returns:
        logprobs, float32[m] in nats, and entropy, float32[m] in nats, without a gradient.
    """
    targets, candidates = targets if isinstance(targets, tuple) else (targets, None)
    m = len(targets)
    chunk = min(chunk_size or max(size_of("logits_alive") // len(head), 1), m)
    # Spread the tokens evenly over the same number of chunks: this needs the least padding
    chunk = -(-m // -(-m // chunk))
    padding = -m % chunk
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
    temperature, recomputed = jnp.float32(temperature), len(hidden) > 1

    def of_chunk(inputs):
        hidden_md, target_m, *candidates = inputs
        if candidates:
            return _chunk_among(hidden_md, head, target_m, temperature, *candidates)
        return _chunk_logprobs(hidden_md, head, target_m, temperature, recomputed)

    inputs: tuple[jax.Array, ...] = hidden, targets
    if candidates is not None:
        padded = jnp.pad(candidates, ((0, padding), (0, 0)))
        inputs += (padded.reshape(-1, chunk, candidates.shape[1]),)
    logprobs, entropy = jax.lax.map(of_chunk, inputs)
    return logprobs.reshape(-1)[:m], entropy.reshape(-1)[:m]


def _logits(hidden, head):
    return dot("md,vd->mv", hidden, head, jnp.float32)


@jax.checkpoint
def _chunk_among(hidden_md, head, target_m, temperature, candidates_mn):
    """Compute `_chunk_logprobs` for distributions over the candidates."""
    logits_mv = _logits(hidden_md, head) / jax.lax.stop_gradient(temperature)
    is_one_mn = candidates_mn >= 0
    among_mn = jnp.take_along_axis(logits_mv, jnp.maximum(candidates_mn, 0), axis=-1)
    among_mn = jnp.where(is_one_mn, among_mn, -jnp.inf)
    # A row without candidates has only -inf, which would make the gradient NaN
    some_m1 = is_one_mn.any(-1, keepdims=True)
    total_m = jax.nn.logsumexp(jnp.where(some_m1, among_mn, 0.0), axis=-1)
    logprob_m = jnp.take_along_axis(logits_mv, target_m[:, None], axis=-1)[:, 0] - total_m
    logprobs_mn = jax.lax.stop_gradient(among_mn - total_m[:, None])
    terms_mn = jnp.where(is_one_mn, jnp.exp(logprobs_mn) * logprobs_mn, 0.0)
    return logprob_m, -terms_mn.sum(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunk_logprobs(hidden, head, targets, temperature, recomputed):
    return _chunk_forward(hidden, head, targets, temperature, recomputed)[0]


def _chunk_forward(hidden, head, targets, temperature, recomputed):
    logits_mv = _logits(hidden, head)
    normalizer_m = log_total(logits_mv, temperature)
    logprobs_mv = logits_mv * (1 / temperature) - normalizer_m[:, None]
    entropy_m = -(jnp.exp(logprobs_mv) * logprobs_mv).sum(-1)
    target_m = jnp.take_along_axis(logits_mv, targets[:, None], axis=-1)[:, 0]
    logprob_m = target_m / temperature - normalizer_m
    saved = hidden, head, targets, temperature, normalizer_m, None if recomputed else logits_mv
    return (logprob_m, entropy_m), saved


def _chunk_backward(recomputed, saved, cotangents):
    hidden, head, targets, temperature, normalizer_m, logits_mv = saved
    # If the logits were saved, nothing reads again_mv, and the compiler drops its product
    again_mv, pull = jax.vjp(_logits, hidden, head)
    logits_mv = again_mv if recomputed else logits_mv
    probs_mv = jnp.exp(logits_mv * (1 / temperature) - normalizer_m[:, None])
    scale_m = cotangents[0] / temperature
    # d logprob[target] / d logits = (one_hot(target) - probs) / temperature
    d_logits_mv = -scale_m[:, None] * probs_mv
    d_logits_mv = d_logits_mv.at[jnp.arange(len(targets)), targets].add(scale_m)
    return *pull(d_logits_mv), None, None


_chunk_logprobs.defvjp(_chunk_forward, _chunk_backward)
