"""Loss terms for a teacher with another vocabulary than the student's."""

import jax
import jax.numpy as jnp

from deepseek_jax.distill.chunks import Outputs
from deepseek_jax.distill.divergences import DivergenceName, diverge
from deepseek_jax.distill.top_k import LOG_TINY
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.heads import head_weight, layer_states
from deepseek_jax.ops.vocabulary import log_softmax


def place_beside(batch):
    """Return the teacher's position that predicts the token aligned with each target: int32[b t].

    The position is in the same row of the batch. It is below 0 where the target has no aligned
    token, and where this token is the first of the teacher's text, which no position predicts.

    Args:
        batch: Has teacher_index, see Objective.
    """
    # The roll moves from a token to its target; the 1 moves from a token to the position that
    # predicts it
    return jnp.roll(batch["teacher_index"], -1, axis=1) - 1


def outputs_beside(config: ModelConfig, params, batch):
    """Return the teacher's Outputs at place_beside of each target, at position 0 if it is below 0.

    Args:
        config: The teacher's.
        params: The teacher's.
        batch: Has teacher_tokens, teacher_tokens_segment_ids and teacher_index, see Objective.
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
    divergence: DivergenceName,
    beta: float | None = None,
):
    """Compute a divergence over the shared tokens and one bucket for all others: float32[m], nats.

    The result is temperature**2 D over n shared tokens and, on each side, one bucket for all of its
    other tokens. It is equal to soft_loss if all tokens are shared. It is for tokens that align
    exactly. A bias remains: a word may be one token of the teacher and several of the student. The
    student should then give their first token more probability, yet this loss punishes it.

    Args:
        logits: float32[m v].
        teacher_logits: float32[m v'].
        shared: (int32[n], int32[n]), the student's and the teacher's ids of the same tokens, from
            shared_vocabulary.
        divergence: As in soft_loss.
        beta: As in soft_loss.
    """
    logp, logq = (
        _shared_buckets(logits_mv / temperature, ids_n)
        # A divergence takes the teacher's distribution first; shared has the student's ids first
        for logits_mv, ids_n in zip((teacher_logits, logits), shared[::-1], strict=True)
    )
    return temperature**2 * diverge(logp, logq, divergence=divergence, beta=beta)


def sorted_probability_loss(logits, teacher_logits):
    """Compute the distance of the sorted probabilities of both sides: float32[m], from 0 to 2.

    It is the sum of |p_(i) - q_(i)| over probabilities in order of size, for tokens that are
    aligned, but not exactly. This is the distillation term of the universal logit distillation
    loss, at temperature 1 (arXiv:2402.12030): a Wasserstein distance in which all moves cost the
    same. Zeros pad the smaller vocabulary. The loss ignores which token is which: it is 0 for any
    permutation of the teacher's distribution.

    Args:
        logits: float32[m v].
        teacher_logits: float32[m v'].
    """
    wider = max(logits.shape[-1], teacher_logits.shape[-1])

    def in_order(logits_mv):
        missing = wider - logits_mv.shape[-1]
        # The order is ascending, so the zeros of the padding go to the front
        probabilities_mv = jnp.sort(jax.nn.softmax(logits_mv), axis=-1)
        return jnp.pad(probabilities_mv, ((0, 0), (missing, 0)))

    return jnp.abs(in_order(logits) - in_order(teacher_logits)).sum(-1)


def _shared_buckets(logits_mv, ids_n):
    """Return the log-probabilities of ids_n, and one for all other ids together: [m n+1].

    The last one is LOG_TINY if there are no other ids.
    """
    logprobs_mv = log_softmax(logits_mv)
    shared_mn = logprobs_mv[:, ids_n]
    v = logits_mv.shape[-1]
    if len(ids_n) == v:
        # The log of an empty sum is -inf, and a divergence would subtract two of them and give NaN
        rest_m = jnp.full(len(logits_mv), LOG_TINY)
    else:
        is_shared_v = jnp.zeros(v, bool).at[ids_n].set(True)
        rest_m = jax.nn.logsumexp(jnp.where(is_shared_v, -jnp.inf, logprobs_mv), axis=-1)
    return jnp.concatenate([shared_mn, rest_m[:, None]], axis=-1)
