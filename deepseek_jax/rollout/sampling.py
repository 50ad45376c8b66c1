"""From logits to the next token, one random stream a request."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# In place of a token that was kept: more tokens were than there is room for
TOO_MANY = -2
# Probabilities in one partial sum of `draw`
LANES = 128


class Sampling(NamedTuple):
    """How tokens are drawn. Hashable, because it is a static argument of compiled functions.

    temperature 0 is greedy. top_k 0 and top_p 1 filter no token. keeps_candidates: `sample` returns the
    tokens that top_k and top_p left.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    keeps_candidates: bool = False

    def check(self, vocab_size: int):
        """Raise ValueError for a setting out of range."""
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1 (keep every token)")
        if not 0 <= self.top_k <= vocab_size:
            raise ValueError(
                f"top_k={self.top_k} must be 0 (keep every token) to vocab_size={vocab_size}"
            )


def sampled_logits(logits, sampling: Sampling):
    """Logits of the sampled distribution: divide by temperature, then top-k, then top-p (arXiv:1904.09751).

    logits: float32[b v]. A token stays in the nucleus if the tokens likelier than it have less than top_p
    probability in all. Temperature 0 (greedy) does not divide.
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
        # A token's own probability does not count, so the one that crosses top_p stays, and so does the first
        kept_bv = jnp.cumsum(probs_bv, axis=-1) - probs_bv < sampling.top_p
        smallest_b1 = jnp.min(jnp.where(kept_bv, sorted_bv, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= smallest_b1, logits, -jnp.inf)
    return logits


def draw(uniform, probs):
    """Invert the cumulative distribution: uniform float32[b] in [0, 1), probs float32[b v] -> int32[b].

    Picks a group of LANES tokens, then a token in it: neither cumulative sum runs over the whole vocabulary.
    Never draws a token of probability 0.
    """
    b, v = probs.shape
    probs_bxy = jnp.pad(probs, ((0, 0), (0, -v % LANES))).reshape(b, -1, LANES)
    upto_bx = jnp.cumsum(probs_bxy.sum(-1), axis=-1)
    # Rounding can make the product equal the total, and then lane_b would be past the end
    target_b = jnp.minimum(uniform * upto_bx[:, -1], jnp.nextafter(upto_bx[:, -1], 0.0))
    # <= also passes over groups of no probability, whose sum equals that of the group before
    lane_b = (upto_bx <= target_b[:, None]).sum(-1)
    chosen_by = jnp.take_along_axis(probs_bxy, lane_b[:, None, None], axis=1)[:, 0]
    upto_by = jnp.cumsum(chosen_by, axis=-1)
    before_b = jnp.take_along_axis(jnp.pad(upto_bx, ((0, 0), (1, 0))), lane_b[:, None], axis=1)[
        :, 0
    ]
    # The same guard within the group, whose two sums may round differently
    target_b = jnp.minimum(target_b - before_b, jnp.nextafter(upto_by[:, -1], 0.0))
    return (lane_b * LANES + (upto_by <= target_b[:, None]).sum(-1)).astype(jnp.int32)


def sample(keys, logits, sampling: Sampling):
    """Draw one token a row: keys typed[b], logits float32[b v] -> (tokens int32[b], logprobs float32[b],
    candidates int32[b n] or None, see `candidates_of`).

    logprobs are under the sampled distribution; with greedy decoding, under temperature 1.
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
    """The tokens with a logit above -inf, of sampled_logits float32[b v]: int32[b top_k], -1 for none.

    Where more than top_k tie, the first is TOO_MANY.
    """
    values_bn, tokens_bn = jax.lax.top_k(logits, top_k)
    tokens_bn = jnp.where(values_bn > -jnp.inf, tokens_bn, -1)
    too_many_b1 = (logits > -jnp.inf).sum(-1, keepdims=True) > top_k
    return jnp.where(too_many_b1 & (jnp.arange(top_k) == 0), TOO_MANY, tokens_bn)


def distribution(logits, sampling: Sampling):
    """The distribution that `sample` draws from and the logprobs it reports: (probs, logprobs) float32[b v].

    logits: float32[b v]. Greedy decoding has all probability on one token, but its logprobs are under
    temperature 1.
    """
    logits_bv = sampled_logits(logits, sampling)
    logprobs_bv = jax.nn.log_softmax(logits_bv, axis=-1)
    if sampling.temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits_bv, axis=-1), logits.shape[1]), logprobs_bv
    return jnp.exp(logprobs_bv), logprobs_bv


def verify(uniform, draft, draft_probs, probs):
    """Speculative sampling (arXiv:2211.17192, algorithm 1, and arXiv:2302.01318): one draft a sequence.

    uniform: float32[b 2] in [0, 1). draft: int32[b], drawn from draft_probs float32[b v]. probs:
    float32[b 2 v], the model's, at the draft's position and, for an accepted draft, at the next position.
    Returns accepted bool[b], True with probability min(1, p / q), and int32[b]: the token after an accepted
    draft, or the token in place of a rejected one, drawn from norm(max(p - q, 0)).
    """
    p_bv, after_bv = probs[:, 0], probs[:, 1]
    p_b, q_b = (jnp.take_along_axis(a, draft[:, None], axis=1)[:, 0] for a in (p_bv, draft_probs))
    # u < p / q without the division. Strict, so that a token with p = 0 is never accepted
    accepted_b = uniform[:, 0] * q_b < p_b
    residual_bv = jnp.maximum(p_bv - draft_probs, 0)
    # Empty by rounding alone, where p equals q
    is_empty_b1 = residual_bv.sum(-1, keepdims=True) == 0
    residual_bv = jnp.where(is_empty_b1, p_bv, residual_bv)
    return accepted_b, draw(uniform[:, 1], jnp.where(accepted_b[:, None], after_bv, residual_bv))
