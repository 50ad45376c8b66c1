"""How far a student's distribution is from its teacher's: one number for each row of log-probabilities."""

import math

import jax
import jax.numpy as jnp

from deepseek_jax.ops.vocabulary import (
    exponential,
    exponential_sum,
    largest,
    log_softmax,
    log_total,
    unshifted_log,
    vocabulary_sum,
)

# THE list of divergences D(teacher p, student q)
DIVERGENCES = (
    "forward_kl",  # KL(p || q): the student has to cover all that the teacher would say (arXiv:1503.02531)
    "reverse_kl",  # KL(q || p): the student has to avoid what the teacher would not (arXiv:2306.08543)
    "jsd",  # beta KL(p || M) + (1 - beta) KL(q || M), M = beta p + (1 - beta) q (arXiv:2306.13649, eq. 1)
)


def kl(logp, logq):
    """KL(p || q) in nats: float32[... v] of finite log-probabilities, twice -> float32[...]."""
    return (jnp.exp(logp) * (logp - logq)).sum(-1)


def divergence_from_logprobs(logp, logq, *, divergence, beta=None):
    """D(p, q) in nats: teacher's and student's log-probabilities, float32[... v] -> float32[...].

    divergence: one of DIVERGENCES. beta: the teacher's share of the mixture in "jsd", whose value vanishes
    like beta KL(p || q) as beta goes to 0 and like (1 - beta) KL(q || p) as beta goes to 1.
    Every entry has to be finite. Raises ValueError as check_divergence does.
    """
    check_divergence(divergence, beta=beta)
    if divergence == "forward_kl":
        return kl(logp, logq)
    if divergence == "reverse_kl":
        return kl(logq, logp)
    logm = jnp.logaddexp(logp + math.log(beta), logq + math.log1p(-beta))
    return beta * kl(logp, logm) + (1 - beta) * kl(logq, logm)


def divergence_from_logits(p, q, *, divergence, temperature=1.0, beta=None):
    """divergence_from_logprobs of two softmaxes, of the teacher's logits and the student's, float32[... v],
    each over temperature -> float32[...]. A KL of them takes fewer passes over v than its two log-softmaxes
    would. Raises ValueError as check_divergence does.
    """
    check_divergence(divergence, beta=beta, temperature=temperature)
    if divergence == "jsd":
        logp, logq = log_softmax(p / temperature), log_softmax(q / temperature)
        return divergence_from_logprobs(logp, logq, divergence=divergence, beta=beta)
    if divergence == "reverse_kl":
        p, q = q, p
    most = largest(p)
    moved = vocabulary_sum(_weighted_difference, (p, q), (most, temperature))
    total = exponential_sum(p, most, temperature)
    log_ratio = log_total(q, temperature) - unshifted_log(total, most, temperature)
    return moved / (total * temperature) + log_ratio


def _weighted_difference(arrays, rows):
    p, q = arrays
    return exponential(p, *rows) * (p - q)


def check_divergence(divergence, *, beta=None, temperature=1.0):
    """Raises ValueError for an unknown divergence, a beta that it does not take, or no real temperature.

    A temperature that is a jax.Array, as of a schedule, is not looked at.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"divergence={divergence!r} is unknown; set config.loss.divergence to one of "
            f"{', '.join(DIVERGENCES)}"
        )
    if divergence == "jsd" and not (beta is not None and 0 < beta < 1):
        raise ValueError(
            f"jsd mixes teacher and student, and beta={beta} is no share between 0 and 1; set "
            "config.loss.beta to one such as 0.5, or config.loss.divergence to forward_kl or reverse_kl"
        )
    if divergence != "jsd" and beta is not None:
        raise ValueError(
            f"{divergence} has no use for beta={beta}; set config.loss.beta to None or "
            "config.loss.divergence to jsd"
        )
    if not isinstance(temperature, jax.Array) and not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature={temperature} divides the logits; set config.loss.temperature to a positive number"
        )
