"""Soft targets of a teacher with another vocabulary."""

import jax
import jax.numpy as jnp

from deepseek_jax.distill.chunks import Outputs
from deepseek_jax.distill.divergences import diverge
from deepseek_jax.distill.top_k import LOG_TINY
from deepseek_jax.models import head_weight, layer_states
from deepseek_jax.ops.vocabulary import log_softmax


def place_beside(batch):
    """Where the teacher predicts the token beside each target, in the same row: int32[b t], below 0 where it
    predicts none, as the first token of its text. batch: teacher_index, as in Objective.
    """
    return jnp.roll(batch["teacher_index"], -1, axis=1) - 1  # of the target, not of the token


def outputs_beside(config, params, batch):
    """Outputs of a teacher at place_beside of each target, or at any place where there is none. batch:
    teacher_tokens, teacher_tokens_segment_ids and teacher_index, as in Objective.
    """
    hidden_bsd, _, _ = layer_states(
        config,
        params,
        batch["teacher_tokens"],
        segment_ids=batch["teacher_tokens_segment_ids"],
        keep_layers=False,
    )
    place_bt = jnp.maximum(place_beside(batch), 0)
    hidden_btd = jnp.take_along_axis(hidden_bsd, place_bt[..., None], axis=1)
    return Outputs(hidden_btd, head_weight(config, params))


def shared_vocabulary_loss(logits, teacher_logits, temperature, shared, *, divergence, beta=None):
    """temperature**2 D over n shared tokens and one bucket for all others of each side: -> float32[m], nats.

    logits: float32[m v]. teacher_logits: float32[m v']. shared: (int32[n], int32[n]), the same tokens' ids,
    from shared_vocabulary. divergence, beta: as in soft_loss, to which it is equal where all tokens are
    shared. For tokens that align exactly. A student that spells a word the teacher has whole in several
    tokens is right to give the first of them more than the teacher does; this loss does not know.
    """
    logp, logq = (
        _shared_buckets(logits_mv / temperature, ids_n)
        for logits_mv, ids_n in zip((teacher_logits, logits), shared[::-1], strict=True)
    )
    return temperature**2 * diverge(logp, logq, divergence=divergence, beta=beta)


def sorted_probability_loss(logits, teacher_logits):
    """Sum of |p_(i) - q_(i)| over probabilities in order of size: float32[m v], float32[m v'] -> float32[m].

    For aligned tokens that do not align exactly.
    The distillation term of the universal logit distillation loss, at temperature 1 (arXiv:2402.12030):
    a Wasserstein distance in which all moves cost the same. The smaller vocabulary is filled up with zeros.
    Identities play no part, so it is 0 for any permutation of the teacher's distribution, and 2 at most.
    """
    wider = max(logits.shape[-1], teacher_logits.shape[-1])

    def in_order(logits_mv):
        missing = wider - logits_mv.shape[-1]
        # Ascending: the zeros come first
        probabilities_mv = jnp.sort(jax.nn.softmax(logits_mv), axis=-1)
        return jnp.pad(probabilities_mv, ((0, 0), (missing, 0)))

    return jnp.abs(in_order(logits) - in_order(teacher_logits)).sum(-1)


def _shared_buckets(logits_mv, ids_n):
    """Log-probabilities of ids_n and of all the others together, [m n+1]; LOG_TINY where there are none."""
    logprobs_mv = log_softmax(logits_mv)
    shared_mn = logprobs_mv[:, ids_n]
    v = logits_mv.shape[-1]
    if len(ids_n) == v:
        rest_m = jnp.full(len(logits_mv), LOG_TINY)
    else:
        is_shared_v = jnp.zeros(v, bool).at[ids_n].set(True)
        rest_m = jax.nn.logsumexp(jnp.where(is_shared_v, -jnp.inf, logprobs_mv), axis=-1)
    return jnp.concatenate([shared_mn, rest_m[:, None]], axis=-1)
