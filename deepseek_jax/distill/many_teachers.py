"""Many teachers, one student: the KL to each task's teacher on the student's own samples (arXiv:2606.19348).

The loss is sum_i w_i KL(student || teacher_i), where i goes over the teachers, and each KL is the mean over
the tokens that the student sampled for that teacher's task, over the full vocabulary. The samples are data:
sampling has no gradient (arXiv:2306.13649, section 3). One term is computed at a time, so that only one
teacher's head is in memory; a teacher is its last hidden states and that head, and may be of any width.
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
    """(weight KL(student || teacher) float32[], {"kl", "entropy", "sampler_gap": float32[]}), nats a token.

    The KL is of the two distributions at the temperature that was sampled at, without a factor
    temperature**2: so it is that of the policy whose samples these are. share: float32[b t], each token's
    share of the means. sampled: (int32[b t], float32[b t]), the sampled tokens and what the sampler gave as
    their log-probabilities. entropy: the student's. sampler_gap: the mean of |log-probability - the
    sampler's|, which rounding alone explains where the student sampled these tokens itself. weight,
    temperature: numbers or float32[]. chunk_size: of chunks.mean_over_tokens, which computes all this a few
    tokens at a time.
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
    """Entropy of softmax(logits / temperature): float32[m v] -> float32[m], nats."""
    most = largest(logits)
    mass = exponential(logits, most, temperature)
    moved = (mass * (logits - most)).sum(-1) / (mass.sum(-1) * temperature)
    return jnp.log(mass.sum(-1)) - moved


def _gap(logits, sampled, temperature):
    """|log-probability of the sampled token - the sampler's|, without gradient: float32[m]."""
    logits, (id_m, logprob_m) = jax.lax.stop_gradient(logits), sampled
    own_m = jnp.take_along_axis(logits, id_m[:, None], axis=-1)[:, 0] / temperature
    return jnp.abs(own_m - log_total(logits, temperature) - logprob_m)
