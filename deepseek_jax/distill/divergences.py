"""Losses of single tokens: a student's logits against its teacher's logits or the text's token."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from deepseek_jax.ops.vocabulary import log_softmax, log_total

# The names of DIVERGENCES
DivergenceName = Literal["forward_kl", "reverse_kl", "jsd"]


def soft_loss(
    logits: jax.Array,
    teacher_logits: jax.Array,
    temperature: float | jax.Array,
    *,
    divergence: DivergenceName,
    beta: float | None = None,
) -> jax.Array:
    """Compute the divergence of the student's softmax from the teacher's, in nats: float32[...].

    The result is temperature**2 D(p, q), with p and q the softmaxes of the teacher's and the
    student's logits / temperature. The factor temperature**2 keeps the scale of the gradients at
    any temperature (arXiv:1503.02531); for forward_kl the gradient in a logit is temperature (q -
    p). Divergences other than forward_kl were published without this factor.

    Args:
        logits: float[... v].
        teacher_logits: float[... v].
        beta: Only for jsd.
    """
    p, q = teacher_logits.astype(jnp.float32), logits.astype(jnp.float32)
    return temperature**2 * diverge(p, q, temperature, divergence=divergence, beta=beta)


def hard_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Compute the negative log-likelihood at temperature 1, in nats: float32[m].

    Args:
        logits: float32[m v].
        targets: int32[m].
    """
    target_m = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return log_total(logits) - target_m


def diverge(p, q, temperature=1.0, *, divergence: DivergenceName, beta: float | None = None):
    """Compute D(p, q), named in DIVERGENCES, of float32[... v] and float32[... v]: float32[...].

    Args:
        beta: Only for jsd.
    """
    if beta is None:
        return DIVERGENCES[divergence](p, q, temperature)
    return DIVERGENCES[divergence](p, q, temperature, beta=beta)


def forward_kl(p: jax.Array, q: jax.Array, temperature: float | jax.Array = 1.0) -> jax.Array:
    """Compute KL(p || q) in nats of the softmaxes of p and q, divided by temperature: float32[...].

    The student must cover every token that the teacher finds likely (arXiv:1503.02531). The result
    is never negative. It is computed as the sum of softmax(p) (p - q), plus log(sum exp q / sum exp
    p), which takes fewer passes over v than two log-softmaxes.

    Args:
        p: float32[... v], the teacher's logits, with any offset; log-probabilities are logits too.
        q: float32[... v], the student's logits, likewise.
    """
    p, q = _below_0(p), _below_0(q)
    # The temperature enters only here: dividing the logits would be one more pass over v
    exp_p, exp_q = jnp.exp(p * (1 / temperature)), jnp.exp(q * (1 / temperature))
    total_p, total_q = exp_p.sum(-1), exp_q.sum(-1)
    moved = (exp_p * (p - q)).sum(-1)
    return _floored(moved / (total_p * temperature) + jnp.log(total_q / total_p))


def _below_0(logits):
    """Subtract each row's largest logit, which changes no softmax and has no gradient.

    Exponentials then stay finite, and differences of two models' logits keep their digits, whatever
    the offsets of the two models.
    """
    return logits - jax.lax.stop_gradient(logits).max(-1, keepdims=True)


def _floored(divergence):
    """Raise a result that rounding made negative to 0, and leave the gradient unchanged."""
    return divergence + jax.lax.stop_gradient(jnp.maximum(divergence, 0) - divergence)


def reverse_kl(p: jax.Array, q: jax.Array, temperature: float | jax.Array = 1.0) -> jax.Array:
    """Compute KL(q || p), otherwise as forward_kl.

    The student must avoid tokens that the teacher finds unlikely (arXiv:2306.08543).
    """
    return forward_kl(q, p, temperature)


def jsd(
    p: jax.Array, q: jax.Array, temperature: float | jax.Array = 1.0, *, beta: float
) -> jax.Array:
    """Compute the generalised Jensen-Shannon divergence, in nats: float32[...].

    It is beta KL(p || M) + (1 - beta) KL(q || M), where M = beta p + (1 - beta) q
    (arXiv:2306.13649, eq. 1). p and q are as in forward_kl. The value vanishes like beta KL(p || q)
    as beta goes to 0, and like (1 - beta) KL(q || p) as beta goes to 1.

    Args:
        beta: The teacher's share of the mixture, between 0 and 1.
    """
    logp, logq = (log_softmax(_below_0(x) / temperature) for x in (p, q))
    logm = jnp.logaddexp(logp + math.log(beta), logq + math.log1p(-beta))
    of_teacher = (jnp.exp(logp) * (logp - logm)).sum(-1)
    of_student = (jnp.exp(logq) * (logq - logm)).sum(-1)
    return _floored(beta * of_teacher + (1 - beta) * of_student)


# THE table of divergences D(teacher p, student q)
DIVERGENCES: dict[DivergenceName, Callable] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
}


def check_beta(divergence: DivergenceName, beta: float | None):
    """Raise ValueError unless beta fits the divergence: between 0 and 1 for jsd, else None."""
    if divergence == "jsd" and not (beta is not None and 0 < beta < 1):
        raise ValueError(
            f"beta={beta} must be between 0 and 1, such as 0.5: it is the teacher's share of the mixture of "
            "jsd; or set divergence to forward_kl or reverse_kl"
        )
    if divergence != "jsd" and beta is not None:
        raise ValueError(
            f"beta={beta} must be None for {divergence}, which mixes nothing; or set divergence to jsd"
        )
