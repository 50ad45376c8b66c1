"""Sampling: draw the next token from logits, with one random stream for each request."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Takes the first place of a token's candidates if there are more candidates than places
TOO_MANY = -2
# Number of probabilities in one partial sum of `draw`
LANES = 128


class Sampling(NamedTuple):
    """How tokens are drawn. It is hashable, because it is a static argument of compiled functions.

    Attributes:
        temperature: 0 is greedy.
        top_p: 1 filters no token.
        top_k: 0 filters no token.
        keeps_candidates: True if `sample` returns the tokens that top_k and top_p left.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    keeps_candidates: bool = False

    def check(self, vocab_size: int):
        """Raise ValueError for a setting that is out of range."""
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1 (keep every token)")
        if not 0 <= self.top_k <= vocab_size:
            raise ValueError(
                f"top_k={self.top_k} must be 0 (keep every token) to vocab_size={vocab_size}"
            )


def sampled_logits(logits, sampling: Sampling):
    """Compute the logits of the distribution that tokens are drawn from.

    Divide by the temperature, then apply top-k, then top-p (arXiv:1904.09751). A token stays in the
    nucleus if the tokens that are likelier have less than top_p probability in all. Temperature 0
    (greedy) does not divide.

    Args:
        logits: float32[b v].
        sampling: How tokens are drawn.

    Returns:
        float32[b v], -inf for a token that cannot be drawn.
    """
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if sampling.top_k:
        smallest_b1 = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        # By value, not by rank: tokens as likely as the k-th stay too
        logits = jnp.where(logits >= smallest_b1, logits, -jnp.inf)
    if sampling.top_p < 1:
        sorted_bv = jnp.sort(logits, axis=-1, descending=True)
        probs_bv = jax.nn.softmax(sorted_bv, axis=-1)
        # A token's own probability does not count, so the first token stays, and so does the token
        # that crosses top_p
        kept_bv = jnp.cumsum(probs_bv, axis=-1) - probs_bv < sampling.top_p
        smallest_b1 = jnp.min(jnp.where(kept_bv, sorted_bv, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= smallest_b1, logits, -jnp.inf)
    return logits


def draw(uniform, probs):
    """Draw tokens by inverting the cumulative distribution.

    It picks a group of LANES tokens, then a token in the group, so that no cumulative sum runs over
    the whole vocabulary. It never draws a token of probability 0.

    Args:
        uniform: float32[b] in [0, 1).
        probs: float32[b v].

    Returns:
        int32[b].
    """
    b, v = probs.shape
    probs_bxy = jnp.pad(probs, ((0, 0), (0, -v % LANES))).reshape(b, -1, LANES)
    upto_bx = jnp.cumsum(probs_bxy.sum(-1), axis=-1)
    # Rounding can make the product equal the total, and then lane_b would be past the end
    target_b = jnp.minimum(uniform * upto_bx[:, -1], jnp.nextafter(upto_bx[:, -1], 0.0))
    # <= also skips groups of probability 0: their cumulative sum equals the sum of the group before
    lane_b = (upto_bx <= target_b[:, None]).sum(-1)
    chosen_by = jnp.take_along_axis(probs_bxy, lane_b[:, None, None], axis=1)[:, 0]
    upto_by = jnp.cumsum(chosen_by, axis=-1)
    before_b = jnp.take_along_axis(jnp.pad(upto_bx, ((0, 0), (1, 0))), lane_b[:, None], axis=1)[
        :, 0
    ]
    # The same guard within the group, because the two sums may round differently
    target_b = jnp.minimum(target_b - before_b, jnp.nextafter(upto_by[:, -1], 0.0))
    return (lane_b * LANES + (upto_by <= target_b[:, None]).sum(-1)).astype(jnp.int32)


def sample(keys, logits, sampling: Sampling):
    """Draw one token in each row.

    Args:
        keys: typed[b].
        logits: float32[b v].
        sampling: How tokens are drawn.

    Returns:
        tokens int32[b]; logprobs float32[b]; and candidates int32[b n], see candidates_of, or None
        if sampling does not keep them. The log-probabilities are under the sampled distribution;
        with greedy decoding, under temperature 1.
    """
    logits_bv = sampled_logits(logits, sampling)
    logprobs_bv = jax.nn.log_softmax(logits_bv, axis=-1)
    if sampling.temperature == 0:
        tokens_b = jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
    else:
        uniform_b = jax.vmap(jax.random.uniform)(keys)
        tokens_b = draw(uniform_b, jnp.exp(logprobs_bv))
    logprobs_b = jnp.take_along_axis(logprobs_bv, tokens_b[:, None], axis=-1)[:, 0]
    keeps = sampling.keeps_candidates
    return tokens_b, logprobs_b, candidates_of(logits_bv, sampling.top_k) if keeps else None


def candidates_of(logits, top_k: int):
    """Return the tokens that could be drawn: int32[b top_k], -1 in places without a token.

    If more than top_k tokens could be drawn, because some tie, the first place has TOO_MANY.

    Args:
        logits: float32[b v], from sampled_logits: a token can be drawn if its logit is above -inf.
        top_k: The number of places.
    """
    values_bn, tokens_bn = jax.lax.top_k(logits, top_k)
    tokens_bn = jnp.where(values_bn > -jnp.inf, tokens_bn, -1)
    too_many_b1 = (logits > -jnp.inf).sum(-1, keepdims=True) > top_k
    return jnp.where(too_many_b1 & (jnp.arange(top_k) == 0), TOO_MANY, tokens_bn)


def distribution(logits, sampling: Sampling):
    """Return the distribution that `sample` draws from, and the log-probabilities that it reports.

    Greedy decoding has all probability on one token, but its log-probabilities are under
    temperature 1.

    Args:
        logits: float32[b v].
        sampling: How tokens are drawn.

    Returns:
        probs and logprobs, float32[b v] each.
    """
    logits_bv = sampled_logits(logits, sampling)
    logprobs_bv = jax.nn.log_softmax(logits_bv, axis=-1)
    if sampling.temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits_bv, axis=-1), logits.shape[1]), logprobs_bv
    return jnp.exp(logprobs_bv), logprobs_bv


def verify(uniform, draft, draft_probs, probs):
    """Accept or reject one draft of each sequence, and draw the token that follows.

    This is speculative sampling (arXiv:2211.17192, algorithm 1, and arXiv:2302.01318).

    Args:
        uniform: float32[b 2] in [0, 1).
        draft: int32[b], drawn from draft_probs.
        draft_probs: float32[b v], q in the paper.
        probs: float32[b 2 v], the model's probabilities: p in the paper, at the draft's position;
            then, for an accepted draft, at the next position.

    Returns:
        accepted bool[b], True with probability min(1, p / q); and int32[b], the token after an
        accepted draft, or the token that replaces a rejected one, drawn from norm(max(p - q, 0)).
    """
    p_bv, after_bv = probs[:, 0], probs[:, 1]
    p_b, q_b = (jnp.take_along_axis(a, draft[:, None], axis=1)[:, 0] for a in (p_bv, draft_probs))
    # u < p / q without the division. Strict, so that a token with p = 0 is never accepted
    accepted_b = uniform[:, 0] * q_b < p_b
    residual_bv = jnp.maximum(p_bv - draft_probs, 0)
    # Only rounding can leave this empty, if p equals q
    is_empty_b1 = residual_bv.sum(-1, keepdims=True) == 0
    residual_bv = jnp.where(is_empty_b1, p_bv, residual_bv)
    return accepted_b, draw(uniform[:, 1], jnp.where(accepted_b[:, None], after_bv, residual_bv))
