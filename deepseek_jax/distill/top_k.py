"""A teacher's distribution as its k likeliest tokens and the probability of all others together."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.distill.chunks import map_chunks
from deepseek_jax.distill.divergences import DivergenceName, diverge
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.vocabulary import (
    exponential,
    exponential_sum,
    largest,
    log_softmax,
)

# The least dropped mass, 1.2e-38: its log stays finite
TINY = float(np.finfo(np.float32).tiny)
LOG_TINY = math.log(TINY)


class TopK(NamedTuple):
    """The k likeliest tokens of a distribution, at one temperature that cannot be changed later.

    Attributes:
        ids: int32[m k], distinct.
        logprobs: float32[m k], in nats.
        dropped: float32[m], the probability of all other ids.
    """

    ids: jax.Array
    logprobs: jax.Array
    dropped: jax.Array


class Buckets(NamedTuple):
    """Log-probabilities of k ids and of all the others together.

    Attributes:
        logprobs: float32[m k].
        tail: float32[m], log of the mass of the other ids.
        smallest: float32[m], log-probability of the least likely of the other ids.
    """

    logprobs: jax.Array
    tail: jax.Array
    smallest: jax.Array

    def joined(self):
        """Return the k + 1 log-probabilities, [m k+1]."""
        return jnp.concatenate([self.logprobs, self.tail[:, None]], axis=-1)


@functools.partial(jax.jit, static_argnames=("top_k", "temperature", "chunk_size"))
def top_k_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    top_k: int,
    temperature: float = 1.0,
    *,
    chunk_size: int | None = None,
) -> TopK:
    """Compute the TopK of the next token, likeliest first, with logits divided by temperature.

    It has no gradient. It works through chunk_size tokens at a time, so that no [m v] array is in
    memory.

    Args:
        hidden: [m d], after the final norm.
        head: [v d].

    Raises:
        ValueError: If top_k is not from 1 to v.
    """
    v = len(head)
    check_top_k(top_k, v)

    def top_k_of_chunk(hidden_md):
        logits_mv = dot("md,vd->mv", hidden_md, head, jnp.float32)
        ids_mk = jax.lax.top_k(logits_mv, top_k)[1].astype(jnp.int32)
        buckets = split_tail(logits_mv, ids_mk, temperature)
        # For k = v the tail is LOG_TINY, which stands for log 0
        dropped_m = jnp.exp(buckets.tail) if top_k < v else jnp.zeros_like(buckets.tail)
        return TopK(ids_mk, buckets.logprobs, dropped_m)

    hidden, head = jax.lax.stop_gradient((hidden, head))
    return map_chunks(top_k_of_chunk, hidden, width=v, chunk_size=chunk_size)


def check_top_k(top_k: int, v: int):
    """Raise ValueError unless top_k is from 1 to the v tokens of the vocabulary."""
    if not 1 <= top_k <= v:
        raise ValueError(f"top_k={top_k} must be from 1 to {v}, the tokens of the vocabulary")


def top_k_loss(
    logits: jax.Array,
    teacher: TopK,
    temperature: float | jax.Array,
    *,
    divergence: DivergenceName,
    beta: float | None = None,
) -> tuple[jax.Array, dict]:
    """Compute a divergence over the teacher's top k and one bucket for all other tokens.

    The last bucket compares the mass that the teacher dropped with the student's mass on the same
    tokens. Without it the loss would push the student's probability of all these tokens to 0. The
    loss is never above soft_loss over all v tokens, at most soft_bound below it
    (dropped_mass_bound), and equal to it for k = v.

    Args:
        logits: float32[m v].
        teacher: The TopK at this temperature.
        divergence: As in soft_loss.
        beta: As in soft_loss.

    Returns:
        (temperature**2 D over k + 1 buckets, float32[m]; {"soft_bound": float32[m]}), in nats.
    """
    student, v = split_tail(logits, teacher.ids, temperature), logits.shape[-1]
    loss_m = diverge(teacher_buckets(teacher), student.joined(), divergence=divergence, beta=beta)
    bound_m = dropped_mass_bound(teacher, student, v, divergence=divergence, beta=beta)
    return temperature**2 * loss_m, {"soft_bound": temperature**2 * bound_m}


def split_tail(logits, ids, temperature=1.0):
    """Split softmax(logits / temperature) into Buckets: k ids, and the tail of all others.

    The tail is a sum over its tokens: 1 minus the others would lose a small tail to rounding. It is
    at least 1.2e-38 of the likeliest token. Without other ids, for k = v, tail and smallest are
    LOG_TINY.

    Args:
        logits: float32[m v].
        ids: int32[m k], distinct in their row.
    """
    most_m1 = largest(logits)
    # Subtract the largest first: a logit with an offset of 10,000 has three decimals
    kept_mk = (jnp.take_along_axis(logits, ids, axis=-1) - most_m1) / temperature
    if ids.shape[1] == logits.shape[1]:
        nothing_m = jnp.full(len(ids), LOG_TINY)
        return Buckets(log_softmax(kept_mk), nothing_m, nothing_m)
    is_kept_mv = jnp.zeros(logits.shape, bool).at[jnp.arange(len(ids))[:, None], ids].set(True)
    exponential_mv = exponential(logits, most_m1, temperature)
    others_m = jnp.where(is_kept_mv, 0.0, exponential_mv).sum(-1)
    log_total_m = jnp.log(exponential_sum(logits, most_m1, temperature))
    tail_m = jnp.log(jnp.maximum(others_m, TINY)) - log_total_m
    smallest_m = jnp.where(is_kept_mv, jnp.inf, logits - most_m1).min(-1) / temperature
    return Buckets(kept_mk - log_total_m[:, None], tail_m, smallest_m - log_total_m)


def teacher_buckets(teacher: TopK):
    """Return the k + 1 log-probabilities of a TopK, float32[m k+1], the dropped mass last."""
    # dropped is 0 for k = v and may underflow otherwise
    tail_m = jnp.maximum(jnp.log(teacher.dropped), LOG_TINY)
    return jnp.concatenate([teacher.logprobs, tail_m[:, None]], axis=-1)


def dropped_mass_bound(
    teacher: TopK,
    student: Buckets,
    v: int,
    *,
    divergence: DivergenceName,
    beta: float | None = None,
):
    """Bound what the divergence over k + 1 buckets misses of the full one: float32[m], nats.

    Let P and Q be the dropped masses of teacher p and student q, and p~ = p / P, q~ = q / Q on the
    v - k other tokens. By the chain rule of relative entropy the divergence over v tokens is the
    divergence over the buckets plus a hidden part, which is never negative. Its upper bound is:

    - forward_kl: The hidden part is P KL(p~ || q~), and KL(p~ || q~) <= log max(p~ / q~). A dropped
      token has at most the probability p_k of the least likely of the k, and never more than P, so
      p~ <= min(1, p_k / P), while q~ >= min(q) / Q over dropped tokens. So the bound is
      P log(min(1, p_k / P) Q / min(q)).
      It is attained if one token has all of P and is the student's least likely one.
    - jsd: With N = beta P + (1 - beta) Q and w = beta P / N the hidden part is N JSD_w(p~, q~).
      A JSD_w is at most the entropy of (w, 1 - w), so the bound is
      beta P log(N / (beta P)) + (1 - beta) Q log(N / ((1 - beta) Q)).
      It is attained if p~ and q~ have no token in common.
    - reverse_kl: The hidden part is Q KL(q~ || p~), which has no bound, as p~ of a dropped token
      may be arbitrarily small: inf.

    With at most one dropped token the hidden part is 0. All bounds are worst cases: for a student
    near its teacher the hidden part is smaller by orders of magnitude.

    Args:
        student: The Buckets at the teacher's ids.
    """
    k = teacher.ids.shape[1]
    if v - k <= 1:
        return jnp.zeros(len(teacher.ids))
    log_p = jnp.maximum(jnp.log(teacher.dropped), LOG_TINY)
    log_q = student.tail
    if divergence == "forward_kl":
        largest = jnp.minimum(teacher.logprobs.min(-1) - log_p, 0.0)
        return teacher.dropped * jnp.maximum(largest + log_q - student.smallest, 0.0)
    if divergence == "reverse_kl":
        return jnp.full(len(teacher.ids), jnp.inf)
    assert beta is not None, "check_beta asks for one with jsd"
    share_p, share_q = log_p + math.log(beta), log_q + math.log1p(-beta)
    log_n = jnp.logaddexp(share_p, share_q)
    return jnp.exp(share_p) * (log_n - share_p) + jnp.exp(share_q) * (log_n - share_q)
