"""Soft targets from a teacher with another vocabulary."""

import jax
import jax.numpy as jnp

from deepseek_jax.distill.chunks import Outputs
from deepseek_jax.distill.divergences import diverge
from deepseek_jax.distill.top_k import LOG_TINY
from deepseek_jax.models import ModelConfig, head_weight, layer_states
from deepseek_jax.ops.vocabulary import log_softmax


def place_beside(batch):
    """The teacher's position, in the same row, that predicts the token aligned with each target: int32[b t].

    Below 0 where no position does: the target has no aligned token, or that token is the first of the
    teacher's text. batch: teacher_index, see Objective.
    """
    # The roll moves from a token to its target, the 1 from a token to the position that predicts it
    return jnp.roll(batch["teacher_index"], -1, axis=1) - 1


def outputs_beside(config: ModelConfig, params, batch):
    """The teacher's Outputs at place_beside of each target; at position 0 where that is below 0. batch:
    teacher_tokens, teacher_tokens_segment_ids and teacher_index, see Objective.
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


def shared_vocabulary_loss(
    logits,
    teacher_logits,
    temperature,
    shared,
    *,
    divergence: str,
    beta: float | None = None,
):
    """temperature**2 D over n shared tokens and one bucket for all others of each side: -> float32[m], nats.

    logits: float32[m v]. teacher_logits: float32[m v']. shared: (int32[n], int32[n]), the same tokens' ids,
    from shared_vocabulary. divergence, beta: as in soft_loss; equal to soft_loss if all tokens are shared.
    For tokens that align exactly. A bias remains: a word may be one token of the teacher and several of the
    student. The student should then give their first token more probability, yet this loss punishes it.
    """
    logp, logq = (
        _shared_buckets(logits_mv / temperature, ids_n)
        # shared has the student's ids first; p, the first argument of a divergence, is the teacher's
        for logits_mv, ids_n in zip((teacher_logits, logits), shared[::-1], strict=True)
    )
    return temperature**2 * diverge(logp, logq, divergence=divergence, beta=beta)


def sorted_probability_loss(logits, teacher_logits):
    """Sum of |p_(i) - q_(i)| over probabilities in order of size: float32[m v], float32[m v'] -> float32[m].

    For aligned tokens that do not align exactly.
    The distillation term of the universal logit distillation loss, at temperature 1 (arXiv:2402.12030):
    a Wasserstein distance in which all moves cost the same. The smaller vocabulary is padded with zeros.
    It ignores which token is which: 0 for any permutation of the teacher's distribution, and 2 at most.
    """
    wider = max(logits.shape[-1], teacher_logits.shape[-1])

    def in_order(logits_mv):
        missing = wider - logits_mv.shape[-1]
        # Ascending, so the padding zeros go to the front
        probabilities_mv = jnp.sort(jax.nn.softmax(logits_mv), axis=-1)
        return jnp.pad(probabilities_mv, ((0, 0), (missing, 0)))

    return jnp.abs(in_order(logits) - in_order(teacher_logits)).sum(-1)


def _shared_buckets(logits_mv, ids_n):
    """Log-probabilities of ids_n, and one of all other ids together, [m n+1]; LOG_TINY without other ids."""
    logprobs_mv = log_softmax(logits_mv)
    shared_mn = logprobs_mv[:, ids_n]
    v = logits_mv.shape[-1]
    if len(ids_n) == v:
        # A sum over no ids is -inf, and the difference of two of them in a divergence NaN
        rest_m = jnp.full(len(logits_mv), LOG_TINY)
    else:
        is_shared_v = jnp.zeros(v, bool).at[ids_n].set(True)
        rest_m = jax.nn.logsumexp(jnp.where(is_shared_v, -jnp.inf, logprobs_mv), axis=-1)
    return jnp.concatenate([shared_mn, rest_m[:, None]], axis=-1)
