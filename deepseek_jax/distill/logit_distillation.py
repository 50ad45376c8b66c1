"""A teacher's soft targets, over the student's vocabulary, and the hard ones (arXiv:1503.02531)."""

import functools

import jax
import jax.numpy as jnp

from deepseek_jax.distill.chunks import map_chunks, weigh_chunks
from deepseek_jax.distill.divergences import (
    check_divergence,
    divergence_from_logits,
    divergence_from_logprobs,
)
from deepseek_jax.distill.top_k import dropped_mass_bound, split_tail, teacher_buckets
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.vocabulary import log_total

STATIC = ("divergence", "beta", "chunk_size")


def jitted(loss):
    """A loss, jitted, whose divergence, beta and temperature are checked first: the last may be a schedule's
    float32[], which is not.
    """
    compiled = jax.jit(loss, static_argnames=STATIC)

    @functools.wraps(loss)
    def checked(*arrays, divergence, temperature, beta=None, **more):
        check_divergence(divergence, beta=beta, temperature=temperature)
        kind = dict(divergence=divergence, temperature=temperature, beta=beta)
        return compiled(*arrays, **kind, **more)

    return checked


def soft_loss(logits, teacher_logits, *, divergence, temperature, beta=None):
    """temperature**2 D(p, q) of the two softmaxes of logits / temperature: float[... v] -> float32[...].

    The factor keeps gradients of one scale whatever the temperature; for forward_kl the gradient in a logit
    is temperature (q - p). Divergences other than forward_kl were published without it. The teacher gets no
    gradient. Raises ValueError as check_divergence does.
    """
    p, q = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32), logits.astype(jnp.float32)
    kind = dict(divergence=divergence, temperature=temperature, beta=beta)
    return temperature**2 * divergence_from_logits(p, q, **kind)


def hard_loss(logits, targets):
    """Negative log-likelihood at temperature 1: float32[m v], int32[m] -> float32[m], nats."""
    target_m = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return log_total(logits) - target_m


@jitted
def dense_distillation(
    hidden,
    head,
    targets,
    teacher,
    teacher_head=None,
    weights=None,
    *,
    divergence,
    temperature,
    beta=None,
    chunk_size=None,
):
    """Student against every token of the teacher: (soft float32[m], hard float32[m]), nats.

    With weights, float32[m] twice, what soft and hard of each token count in the loss: (total, soft, hard),
    of which total alone has a gradient, and nothing is recomputed for it; see chunks.weigh_chunks.

    hidden: [m d], after the final norm; head: [v d]; targets: int32[m], the tokens that hidden predicts.
    teacher: [m d'], the same places' hidden states, with teacher_head [v d']; or, without one, logits [m v].
    soft: soft_loss under temperature. hard: hard_loss. Works through chunk_size tokens at a time and
    recomputes their logits for the gradient, which reaches hidden and head alone. Raises ValueError for
    vocabularies of two sizes and as check_divergence does.
    """
    teacher, teacher_head = jax.lax.stop_gradient((teacher, teacher_head))
    v = len(head)
    teacher_v = teacher.shape[-1] if teacher_head is None else len(teacher_head)
    if teacher_v != v:
        raise ValueError(
            f"the teacher has {teacher_v} logits and the student {v}; cut both heads to the tokens "
            "they share (config.loss.vocab_size), or set config.loss.cross_tokenizer for two tokenizers"
        )

    def of_chunk(hidden_md, head, arrays, whole):
        (targets_m, teacher_m), (teacher_head, temperature) = arrays, whole
        logits_mv = dot("md,vd->mv", hidden_md, head, jnp.float32)
        if teacher_head is not None:
            teacher_m = dot("md,vd->mv", teacher_m, teacher_head, jnp.float32)
        kind = dict(divergence=divergence, temperature=temperature, beta=beta)
        return soft_loss(logits_mv, teacher_m, **kind), hard_loss(logits_mv, targets_m)

    whole, sizes = (teacher_head, temperature), dict(width=2 * v, chunk_size=chunk_size)
    return _over_chunks(of_chunk, hidden, head, (targets, teacher), whole, weights, **sizes)


@jitted
def top_k_distillation(
    hidden,
    head,
    targets,
    teacher,
    weights=None,
    *,
    divergence,
    temperature,
    beta=None,
    chunk_size=None,
):
    """Student against the teacher's likeliest tokens: (soft, hard, soft_bound), float32[m] each, nats.

    hidden, head, targets, weights, hard and memory: as for dense_distillation. teacher: TopK under this very
    temperature. soft: temperature**2 D over k + 1 buckets, the last one all that the teacher dropped, against
    all that the student gives to the same tokens; never above soft_loss over all v tokens, which lies within
    soft_bound of it (dropped_mass_bound; inf for reverse_kl), and equal to it for k = v. Without that last
    bucket the student would have to forget all other tokens. Raises ValueError as check_divergence does.
    """
    teacher = jax.lax.stop_gradient(teacher)
    kind = dict(divergence=divergence, beta=beta)

    def of_chunk(hidden_md, head, arrays, temperature):
        targets_m, teacher_m = arrays
        logits_mv = dot("md,vd->mv", hidden_md, head, jnp.float32)
        student_m = split_tail(logits_mv, teacher_m.ids, temperature)
        soft_m = divergence_from_logprobs(teacher_buckets(teacher_m), student_m.joined(), **kind)
        bound_m = dropped_mass_bound(teacher_m, student_m, len(head), **kind)
        scale = temperature**2
        return scale * soft_m, hard_loss(logits_mv, targets_m), scale * bound_m

    if weights is not None:
        weights = *weights, None
    sizes = dict(width=2 * len(head), chunk_size=chunk_size)  # logits, and those of the tail
    return _over_chunks(of_chunk, hidden, head, (targets, teacher), temperature, weights, **sizes)


def _over_chunks(of_chunk, hidden, head, arrays, whole, weights, **sizes):
    if weights is not None:
        return weigh_chunks(of_chunk, hidden, head, arrays, whole, weights, **sizes)

    def recomputed(chunk):
        return of_chunk(chunk[0], head, chunk[1], whole)

    return map_chunks(recomputed, (hidden, arrays), **sizes)
