"""Many teachers, one student: the KL to each task's teacher on the student's own samples.

The loss is sum_i w_i KL(student || teacher_i), where i goes over the teachers (arXiv:2606.19348).
Each KL is over the full vocabulary, and a mean over the tokens that the student sampled for this
teacher's task. The samples are data: sampling has no gradient (arXiv:2306.13649, section 3). One
term is computed at a time, so that only one teacher's head is in memory. A teacher is its last
hidden states and its head, and may have any width.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from deepseek_jax.distill.chunks import Outputs, Term, mean_over_tokens
from deepseek_jax.distill.divergences import reverse_kl
from deepseek_jax.ops.vocabulary import exponential, largest, log_total


def teacher_kl(
    student: Outputs,
    teacher: Outputs,
    share: jax.Array,
    sampled: tuple[jax.Array, jax.Array],
    *,
    weight: float | jax.Array,
    temperature: float | jax.Array,
    chunk_size: int | None = None,
) -> tuple[jax.Array, dict]:
    """Compute the weighted KL(student || teacher) of one teacher, with metrics, in nats a token.

    Both distributions are at the temperature of the sampling, and there is no factor
    temperature**2: the KL is of the policy that drew these samples. chunks.mean_over_tokens
    computes all this a few tokens at a time.

    Args:
        share: float32[b t], each token's share of the means.
        sampled: (int32[b t], float32[b t]), the sampled tokens and the log-probabilities that the
            sampler reported for them.
        weight: A number or float32[].
        temperature: A number or float32[].
        chunk_size: See chunks.mean_over_tokens.

    Returns:
        (weight times KL, float32[]; {"kl", "entropy", "sampler_gap": float32[]}). entropy is the
        student's. sampler_gap is the mean of |log-probability - the sampler's|; where the student
        sampled these tokens itself, only rounding explains it.
    """
    terms = {
        "kl": Term(Partial(_kl_and_entropy, temperature=temperature), share, weight),
        "sampler_gap": Term(Partial(_gap, temperature=temperature), share, 0.0, sampled),
    }
    return mean_over_tokens(terms, student, teacher, chunk_size=chunk_size)


def _kl_and_entropy(logits, teacher_logits, temperature):
    kl_m = reverse_kl(teacher_logits, logits, temperature)
    return kl_m, {"entropy": _entropy(jax.lax.stop_gradient(logits), temperature)}


def _entropy(logits, temperature):
    """Compute the entropy of softmax(logits / temperature), in nats: float32[m v] -> float32[m]."""
    most = largest(logits)
    mass = exponential(logits, most, temperature)
    moved = (mass * (logits - most)).sum(-1) / (mass.sum(-1) * temperature)
    return jnp.log(mass.sum(-1)) - moved


def _gap(logits, sampled, temperature):
    """Return |log-probability of the sampled token - the sampler's|, no gradient: float32[m]."""
    logits, (id_m, logprob_m) = jax.lax.stop_gradient(logits), sampled
    own_m = jnp.take_along_axis(logits, id_m[:, None], axis=-1)[:, 0] / temperature
    return jnp.abs(own_m - log_total(logits, temperature) - logprob_m)
